"""Tokenizers that are damaged, unknown, or larger than the embedding."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packager.errors import InputError, LorapackError, UnsafeInputError, UnsupportedFeatureError
from packager.gguf import pretokenizer
from packager.gguf.tokenizer import read_tokenizer_keys
from packager.gguf.value import key_value
from tests import models
from tests.gguf.variants import change, read, write

_LLAMA = {"architectures": ["LlamaForCausalLM"]}
_GEMMA = {"architectures": ["Gemma2ForCausalLM"]}


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    """The files of a byte-level BPE tokenizer."""
    folder = tmp_path / "bpe"
    models.write_tokenizer(folder)
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every tokenizer a known one, so that what comes after is met."""

    class Known(dict[str, str]):
        def __missing__(self, _hash: str) -> str:
            return "gpt-2"

        def __contains__(self, _hash: object) -> bool:
            return True

    monkeypatch.setattr(pretokenizer, "NAMES", Known())


def test_unknown_hash_is_shown_and_not_guessed(tmp_path: Path) -> None:
    models.write_tokenizer(tmp_path)
    with pytest.raises(UnsupportedFeatureError, match="splits text") as caught:
        read_tokenizer_keys(tmp_path, _LLAMA, 400)
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tmp_path).encode(pretokenizer.CHECK_TEXT)
    assert caught.value.found == f"hash {pretokenizer.hash_ids(ids)}"
    assert caught.value.where == str(tmp_path / "tokenizer.json")
    assert "--target adapter" in caught.value.hint
    assert "--llama-cpp DIR" in caught.value.hint


def test_known_tokenizer_is_known_with_other_ends(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(models.keep_smollm2() / name, tmp_path / name)
    change(
        tmp_path,
        "tokenizer_config.json",
        lambda file: file.update(add_bos_token=True, add_eos_token=True),
    )
    keys = read_tokenizer_keys(tmp_path, _LLAMA, 49152)
    assert key_value(keys, "tokenizer.ggml.pre") == "smollm"


@pytest.mark.usefixtures("known")
def test_files_of_several_folders_are_read_together(tmp_path: Path, bpe: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ mine }}", encoding="utf-8")
    files = {
        "tokenizer.json": bpe / "tokenizer.json",
        "tokenizer_config.json": bpe / "tokenizer_config.json",
        "chat_template.jinja": template,
    }
    keys = read_tokenizer_keys(files, _LLAMA, 400)
    assert key_value(keys, "tokenizer.chat_template") == "{{ mine }}"


@pytest.mark.usefixtures("known")
def test_vocabulary_larger_than_the_embedding_is_refused(bpe: Path) -> None:
    vocabulary = read(bpe / "tokenizer.json")["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    assert read_tokenizer_keys(bpe, _LLAMA, len(vocabulary))
    with pytest.raises(InputError, match="larger than the embedding") as caught:
        read_tokenizer_keys(bpe, _LLAMA, len(vocabulary) - 1)
    assert caught.value.found == f"{last!r} with id {len(vocabulary) - 1}"
    assert caught.value.expected.startswith(f"token ids below {len(vocabulary) - 1}")


def test_pieces_beyond_the_embedding_are_refused(pieces: Path) -> None:
    with pytest.raises(InputError, match="larger than the embedding"):
        read_tokenizer_keys(pieces, _GEMMA, 100)


def test_missing_pieces_are_asked_for(bpe: Path) -> None:
    with pytest.raises(InputError, match="file is missing") as caught:
        read_tokenizer_keys(bpe, _GEMMA, 400)
    assert "tokenizer.model" in caught.value.expected


def test_missing_files_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        read_tokenizer_keys(tmp_path, _LLAMA, 400)


def test_link_that_leads_outside_is_refused(tmp_path: Path, bpe: Path) -> None:
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "tokenizer.json").symlink_to(bpe / "tokenizer.json")
    with pytest.raises(UnsafeInputError, match="leads outside"):
        read_tokenizer_keys(folder, _LLAMA, 400)


def _piece(text: bytes, kind: int) -> bytes:
    """Returns one entry of a SentencePiece model: text, score 0 and type."""
    body = b"\n" + bytes([len(text)]) + text + b"\x15\x00\x00\x00\x00\x18" + bytes([kind])
    return b"\n" + bytes([len(body)]) + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\xff" * 64,
        _piece(b"<s>", 1),
        _piece(b"<unk>", 2) + _piece(b"\xff\xfe", 1),
        _piece(b"<unk>", 2) + _piece(b"a\x00b", 1),
        _piece(b"<unk>", 2) + _piece(b"\xff", 1) + _piece(b"\xff", 1),
    ],
)
def test_damaged_pieces_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_tokenizer_keys(tmp_path, _GEMMA, 100)
    assert caught.value.where == str(tmp_path / "tokenizer.model")


def test_cut_pieces_are_named(tmp_path: Path, pieces: Path) -> None:
    whole = (pieces / "tokenizer.model").read_bytes()
    for length in range(1, len(whole), len(whole) // 7):
        (tmp_path / "tokenizer.model").write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            read_tokenizer_keys(tmp_path, _GEMMA, 1000)


_DAMAGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "no model": ("tokenizer.json", lambda file: file.pop("model")),
    "model of another kind": ("tokenizer.json", lambda file: file.update(model=[1, 2])),
    "merge of three": (
        "tokenizer.json",
        lambda file: file["model"]["merges"].append(["a", "b", "c"]),
    ),
    "unknown merge": (
        "tokenizer.json",
        lambda file: file["model"]["merges"].append(["no", "such"]),
    ),
    "added id": ("tokenizer.json", lambda file: file["added_tokens"][0].update(id="x")),
    "pre-tokenizer": (
        "tokenizer.json",
        lambda file: file.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}}),
    ),
    # The library panics at these two.
    "charsmap": (
        "tokenizer.json",
        lambda file: file.update(
            normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
        ),
    ),
    "prepend": (
        "tokenizer.json",
        lambda file: file.update(normalizer={"type": "Prepend", "prepend": ""}),
    ),
    "added list": (
        "tokenizer_config.json",
        lambda file: file.update(added_tokens_decoder=[1]),
    ),
    "added key": (
        "tokenizer_config.json",
        lambda file: file.update(added_tokens_decoder={"-1": {"content": "x"}}),
    ),
    "added text": (
        "tokenizer_config.json",
        lambda file: file.update(added_tokens_decoder={"1": {"content": 5}}),
    ),
}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("name", _DAMAGES)
def test_damaged_file_is_named(name: str, bpe: Path) -> None:
    file, edit = _DAMAGES[name]
    change(bpe, file, edit)
    with pytest.raises(InputError) as caught:
        read_tokenizer_keys(bpe, _LLAMA, 400)
    assert caught.value.where == str(bpe / file)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_no_value_of_another_type_escapes_as_another_error(bpe: Path, file: str) -> None:
    document = read(bpe / file)
    for key in list(document):
        for value in (None, 0, "", [], {}, [[]], {"type": {}}, [{"SpecialToken": 1}]):
            write(bpe / file, {**document, key: value})
            with contextlib.suppress(LorapackError):
                read_tokenizer_keys(bpe, _LLAMA, 400)


@pytest.mark.usefixtures("known")
def test_negative_special_token_is_named(bpe: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_tokenizer_keys(bpe, {**_LLAMA, "sep_token_id": -1}, 400)
    assert caught.value.found == "-1"


@pytest.mark.usefixtures("known")
def test_merges_of_their_own_file_are_read(bpe: Path) -> None:
    merges = [" ".join(merge) for merge in read(bpe / "tokenizer.json")["model"]["merges"]]
    (bpe / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    change(bpe, "tokenizer.json", lambda file: file["model"].update(merges=[]))
    keys = read_tokenizer_keys(bpe, _LLAMA, 400)
    assert key_value(keys, "tokenizer.ggml.merges") == tuple(merges)
