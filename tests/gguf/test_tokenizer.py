"""Tokenizer keys, against llama.cpp's own converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packager.gguf import pretokenizer
from packager.gguf.tokenizer import read_tokenizer_keys
from packager.gguf.tokenizerfile import list_tokenizer_files
from packager.gguf.vocabulary import check_encodings, open_tokenizer
from tests.gguf.cases import CASES
from tests.gguf.conftest import TEST_PRE, Converted
from tests.gguf.reading import read_config, read_keys, read_shapes, written


@pytest.fixture
def _knows_test_tokenizers(
    converted: dict[str, Converted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gives the tokenizers that tests train the name that the converter gives them."""
    files = list_tokenizer_files(converted["llama"].model)
    ids = next(check_encodings(open_tokenizer(files), files))
    known = {**pretokenizer.NAMES, pretokenizer.hash_ids(ids): TEST_PRE}
    monkeypatch.setattr(pretokenizer, "NAMES", known)


def tokenizer_keys(path: Path) -> dict[str, Any]:
    return {k: v for k, v in read_keys(path).items() if k.startswith("tokenizer.")}


@pytest.mark.usefixtures("_knows_test_tokenizers")
@pytest.mark.parametrize("name", CASES)
def test_keys_are_those_of_the_converter(name: str, converted: dict[str, Converted]) -> None:
    case = converted[name]
    rows = next(
        s[0] for n, s in read_shapes(case.model).items() if "embed_tokens" in n or "wte" in n
    )
    ours = written(read_tokenizer_keys(case.model, read_config(case.model), rows))
    theirs = tokenizer_keys(case.gguf)
    assert ours == theirs
