"""Models of every family, and what llama.cpp's converter makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gguf.cases import CASES, write_model, write_pieces
from tests.llamacpp_source import Conversion, convert_all

TEST_PRE = "llama-bpe"
"""What the converter takes for the pre-tokenizer of a vocabulary that a test trained."""


@dataclass(frozen=True)
class Converted:
    """A model and its conversion by llama.cpp.

    Attributes:
        model: The checkpoint directory.
        gguf: The file, all in float32.
    """

    model: Path
    gguf: Path


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a SentencePiece tokenizer."""
    return write_pieces(tmp_path_factory.mktemp("pieces") / "tokenizer")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory, pieces: Path) -> dict[str, Converted]:
    """Every case, converted."""
    root = tmp_path_factory.mktemp("families")
    made = {
        name: Converted(write_model(case, root / name, pieces), root / f"{name}.gguf")
        for name, case in CASES.items()
    }
    convert_all([Conversion(each.model, each.gguf, "f32", TEST_PRE) for each in made.values()])
    return made
