"""Which type each tensor gets: as llama-quantize says, for every kind of model and mixture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from packager.errors import InputError
from packager.gguf.layout import plan_files, render_start
from packager.gguf.mixture import QUANTS, Quant, choose_types, parse_quant
from tests.gguf import llama_tools
from tests.gguf.geometry import GEOMETRIES

_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) .*?(?:\((\w+)\))?$", re.MULTILINE)


def write_zeros(path: Path, kind: str) -> None:
    """Writes a float32 file."""
    model = GEOMETRIES[kind].model
    (file,) = plan_files(model, "F32", path.stem)
    path.write_bytes(render_start(model, file).ljust(file.size, b"\0"))


def write_imatrix(path: Path) -> None:
    """Writes a matrix of importance that has a single entry, in the old format."""
    name = b"blk.0.attn_q.weight"
    head = np.int32([1, len(name)]).tobytes() + name + np.int32([1, 4]).tobytes()
    path.write_bytes(head + np.ones(4, dtype=np.float32).tobytes())


def ask_llama_quantize(folder: Path, kind: str, quants: tuple[Quant, ...], *options: str) -> None:
    """Compares our choice with a dry run for each quantisation."""
    source = folder / "source.gguf"
    write_zeros(source, kind)
    said = llama_tools.quantize(*([*options, "--dry-run", source, quant] for quant in quants))
    for quant, part in zip(quants, said.split(": quant size")[:-1], strict=True):
        theirs = [(name, type_name.upper() or "F32") for name, type_name in _LINE.findall(part)]
        ours = choose_types(GEOMETRIES[kind].model, quant, has_imatrix="--imatrix" in options)
        assert theirs
        assert [(item.name, item.type) for item in ours] == theirs, quant


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_types_are_those_of_llama_quantize(tmp_path: Path, kind: str) -> None:
    ask_llama_quantize(tmp_path, kind, QUANTS)


@pytest.mark.parametrize("kind", ["llama grouped", "mixtral", "falcon"])
def test_an_importance_matrix_changes_types_likewise(tmp_path: Path, kind: str) -> None:
    write_imatrix(tmp_path / "imatrix.dat")
    quants: tuple[Quant, ...] = ("Q4_0", "Q5_0", "IQ4_XS", "IQ4_NL", "Q4_K_M", "F16")
    ask_llama_quantize(tmp_path, kind, quants, "--imatrix", str(tmp_path / "imatrix.dat"))


def test_what_rows_cannot_take_is_told() -> None:
    fell = {
        item.name: (item.fell_back, item.type)
        for item in choose_types(GEOMETRIES["llama of odd rows"].model, "Q4_K_M")
    }
    assert fell["blk.0.attn_q.weight"] == ("Q4_K", "F16")
    assert fell["token_embd.weight"] == ("Q8_0", "F16")
    assert fell["blk.0.attn_norm.weight"] == ("", "F32")
    uneven = choose_types(GEOMETRIES["llama of uneven rows"].model, "Q4_K_M")
    assert {(item.fell_back, item.type) for item in uneven if item.fell_back} == {
        ("Q4_K", "Q5_0"), ("Q6_K", "Q8_0"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "quant"), [("q4_k_m", "Q4_K_M"), (" Q8_0", "Q8_0"), ("q5_k", "Q5_K_M")]
)
def test_parse_quant(text: str, quant: str) -> None:
    assert parse_quant(text) == quant


def test_parse_quant_names_all() -> None:
    with pytest.raises(InputError, match="unknown quantisation") as caught:
        parse_quant("Q4_K_XL")
    assert all(quant in caught.value.expected for quant in QUANTS)
