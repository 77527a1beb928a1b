"""Chat templates in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packager.chat import choose_chat, read_end_ids, render_chat
from packager.errors import InputError
from tests.chat.tokenizer import LLAMA3, make_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer(LLAMA3, special=["<|eot_id|>"], plain_bos=True)
    return save_tokenizer(tokenizer, tmp_path_factory.mktemp("tokenizer"))


def write_template(folder: Path, out: Path, jinja: str) -> Path:
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return out


def test_choice_comes_back_whole(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "generation_config.json"
    config.write_text('{"eos_token_id": [257, 258]}', encoding="utf-8")
    choice = choose_chat(folder, generation_config=config)
    assert (choice.family, choice.adds_bos, choice.requires) == ("llama3", True, "")
    assert choice.stops == ("<|eot_id|>", "</s>")
    assert choice.end_ids == (258, 257)
    assert choice.checked[:3] == ("question", "system", "turns")


def test_renderings_come_back_whole(smollm2_base: Path) -> None:
    renderings, refused = render_chat(smollm2_base)
    assert refused == ()
    assert renderings[1].conversation == "system"
    assert renderings[1].text == (
        "<|im_start|>system\nYou answer in one short sentence.<|im_end|>\n"
        "<|im_start|>user\nHello! Who are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert renderings[1].ids[:3] == (1, 9690, 198)


@pytest.mark.parametrize(
    ("jinja", "what"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "time"),
        ("{{ 'x' * 10**11 }}", "memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "no conversation at all"),
        ("{% if %}", "does not parse"),
    ],
)
def test_hostile_templates_end(folder: Path, tmp_path: Path, jinja: str, what: str) -> None:
    hostile = write_template(folder, tmp_path / "hostile", jinja)
    with pytest.raises(InputError, match=what) as caught:
        choose_chat(hostile, seconds=10 if what == "time" else 60)
    assert str(hostile) in caught.value.where
    assert "\n" not in str(caught.value)


def test_broken_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        choose_chat(tmp_path)


@pytest.mark.parametrize(
    ("value", "ids"), [(None, []), (2, [2]), ([3, 4], [3, 4]), ("2", None), ([True], None)]
)
def test_ends_of_the_generation_configuration(
    tmp_path: Path, value: object, ids: list[int] | None
) -> None:
    path = tmp_path / "generation_config.json"
    assert read_end_ids(path) == []
    path.write_text(json.dumps({"eos_token_id": value}), encoding="utf-8")
    if ids is None:
        with pytest.raises(InputError, match="no token id"):
            read_end_ids(path)
    else:
        assert read_end_ids(path) == ids
