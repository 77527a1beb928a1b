"""Tokenizer keys, against llama.cpp's own converter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from packager.gguf import pretokenizer
from packager.gguf.tokenizer import read_tokenizer_keys
from packager.gguf.tokenizerdocument import check_encodings, open_tokenizer
from packager.gguf.tokenizerfile import list_tokenizer_files
from tests import llamacpp_source, models
from tests.gguf.cases import CASES
from tests.gguf.conftest import TEST_PRE, Converted
from tests.gguf.reading import read_config, read_keys, read_shapes, written
from tests.gguf.variants import VARIANTS, write_variant


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory, pieces: Path) -> dict[str, Converted]:
    """Every variant of a tokenizer, its keys written by the converter."""
    root = tmp_path_factory.mktemp("variants")
    made = {
        name: Converted(write_variant(name, root / name, pieces), root / f"{name}.gguf")
        for name in VARIANTS
    }
    llamacpp_source.convert_all(
        [
            llamacpp_source.Conversion(each.model, each.gguf, "f32", TEST_PRE, vocab_only=True)
            for each in made.values()
        ]
    )
    return made


@pytest.fixture
def learn(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Gives a tokenizer's hash, as transformers computes it, the name that the converter took."""

    def add(folder: Path) -> None:
        ids = AutoTokenizer.from_pretrained(folder).encode(pretokenizer.CHECK_TEXT)
        known = {pretokenizer.hash_ids(ids): TEST_PRE, **pretokenizer.NAMES}
        monkeypatch.setattr(pretokenizer, "NAMES", known)

    return add


def tokenizer_keys(path: Path) -> dict[str, Any]:
    keys = {name: key for name, key in read_keys(path).items() if name.startswith("tokenizer.")}
    if "tokenizer.chat_templates" in keys:
        # The converter's order is that of a set.
        keys["tokenizer.chat_templates"][1].sort()
    return keys


@pytest.mark.parametrize("name", CASES)
def test_keys_are_those_of_the_converter(
    name: str, converted: dict[str, Converted], learn: Callable[[Path], None]
) -> None:
    case = converted[name]
    learn(case.model)
    rows = read_keys(case.gguf)["tokenizer.ggml.tokens"][1]
    assert (len(rows),) in {shape[:1] for shape in read_shapes(case.model).values()}
    ours = written(read_tokenizer_keys(case.model, read_config(case.model), len(rows)))
    assert ours == tokenizer_keys(case.gguf)


@pytest.mark.parametrize("name", VARIANTS)
def test_keys_of_unusual_files_are_those_of_the_converter(
    name: str, variants: dict[str, Converted], learn: Callable[[Path], None]
) -> None:
    case = variants[name]
    learn(case.model)
    config = read_config(case.model)
    ours = written(read_tokenizer_keys(case.model, config, config["vocab_size"]))
    if "tokenizer.chat_templates" in ours:
        ours["tokenizer.chat_templates"][1].sort()
    assert ours == tokenizer_keys(case.gguf)
    assert VARIANTS[name] in ours


def test_check_text_gives_the_ids_of_transformers(converted: dict[str, Converted]) -> None:
    folders = [models.keep_smollm2(), converted["llama"].model, converted["gpt2"].model]
    for folder in folders:
        files = list_tokenizer_files(folder)
        theirs = AutoTokenizer.from_pretrained(folder).encode(pretokenizer.CHECK_TEXT)
        assert next(check_encodings(open_tokenizer(files), files)) == theirs


def test_table_of_hashes_is_the_converters() -> None:
    text = (llamacpp_source.llamacpp_source() / "conversion/base.py").read_text(encoding="utf-8")
    stated = re.findall(r'chkhsh == "([0-9a-f]{64})":.*?res = "([^"]+)"', text, re.DOTALL)
    assert dict(stated) == pretokenizer.NAMES
    assert repr(pretokenizer.CHECK_TEXT)[1:40] in text
