"""Blocks of values: gguf's own quantiser, written in numpy, makes the same bytes."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from packager.errors import InputError
from packager.gguf import ggml
from packager.gguf.block import BLOCKS, BlockType, data_bytes, row_bytes
from packager.gguf.ggml import Ggml, load_ggml

NUMPY_TYPES: tuple[BlockType, ...] = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
)  # fmt: skip


def make_rows(seed: int = 0) -> NDArray[np.float32]:
    """Rows of usual values, of zeros, and of what is hard to round."""
    random = np.random.default_rng(seed)
    rows = random.normal(scale=0.05, size=(64, 512)).astype(np.float32)
    rows[1] = 0
    rows[2] *= 1e-9
    rows[3] *= 1e4
    rows[4] = random.integers(-40, 40, size=512) / 8
    rows[5] = np.float32(1 + 2**-11) * rows[4]
    return rows


def quantise(
    type_name: BlockType,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
) -> tuple[bytes, bool]:
    out = np.empty(rows.shape[0] * row_bytes(type_name, rows.shape[1]), dtype=np.uint8)
    finite = load_ggml().quantise_rows(type_name, rows, out, importance)
    return out.tobytes(), finite


@pytest.mark.parametrize("type_name", NUMPY_TYPES)
def test_blocks_are_those_of_gguf(type_name: BlockType) -> None:
    rows = make_rows()
    found, finite = quantise(type_name, rows)
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[type_name])
    assert finite
    assert found == theirs.tobytes()


@pytest.mark.parametrize("type_name", BLOCKS)
def test_sizes_are_those_of_gguf(type_name: BlockType) -> None:
    number = gguf.GGMLQuantizationType[type_name]
    assert (BLOCKS[type_name].values, BLOCKS[type_name].nbytes) == gguf.GGML_QUANT_SIZES[number]
    assert BLOCKS[type_name].number == number
    assert data_bytes(type_name, (3, 5, 512)) == 15 * row_bytes(type_name, 512)


@pytest.mark.parametrize("type_name", [name for name in BLOCKS if name != "F32"])
def test_rows_do_not_depend_on_each_other(type_name: BlockType) -> None:
    rows = make_rows(1)
    whole, _ = quantise(type_name, rows)
    parts = [quantise(type_name, rows[first : first + 7])[0] for first in range(0, 64, 7)]
    assert b"".join(parts) == whole


@pytest.mark.parametrize("type_name", ["Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ4_XS"])
def test_importance_lowers_the_error_where_it_is_large(type_name: BlockType) -> None:
    rows = make_rows(2)[6:]
    importance = np.full(512, 1e-3, dtype=np.float32)
    importance[::16] = 1
    errors = []
    for weights in (None, importance):
        raw = np.frombuffer(quantise(type_name, rows, weights)[0], dtype=np.uint8)
        values = gguf.quants.dequantize(
            raw.reshape(rows.shape[0], -1), gguf.GGMLQuantizationType[type_name]
        )
        errors.append(float(np.square(values - rows)[:, ::16].mean()))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("type_name", ["F16", "Q4_0", "Q8_0", "Q6_K", "Q4_K"])
def test_what_a_type_cannot_hold_is_told(type_name: BlockType) -> None:
    rows = make_rows(3)
    rows[9, 100] = 1e12
    assert not quantise(type_name, rows)[1]


def test_a_missing_library_is_named() -> None:
    for spec in (None, ModuleSpec("xllamacpp", None)):
        with pytest.raises(InputError, match="the library that quantises is missing") as caught:
            ggml._find_library(spec)
        assert "pip install" in caught.value.hint


def test_another_library_is_refused(tmp_path: Path) -> None:
    other = next(Path(np.__path__[0]).rglob("_multiarray_umath*.so"))
    with pytest.raises(InputError, match="cannot be used") as caught:
        Ggml(other)
    assert "ggml_" in caught.value.expected
    text = tmp_path / "xllamacpp.so"
    text.write_text("no library")
    with pytest.raises(InputError, match="cannot be used"):
        Ggml(text)
