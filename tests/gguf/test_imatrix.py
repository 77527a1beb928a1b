"""Importance matrices in both formats; llama-quantize reads the same files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.errors import InputError
from packager.gguf.imatrix import (
    check_imatrix,
    fitting_weights,
    imatrix_keys,
    read_imatrix,
)
from packager.gguf.value import GgufModel, key_value
from tests.gguf.geometry import GEOMETRIES
from tests.gguf.importance import write_gguf_imatrix, write_old_imatrix

MODEL = GEOMETRIES["mixtral"].model


def test_gguf_divides_sums_by_counts(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_gguf_imatrix(path, MODEL)
    imatrix = read_imatrix(path)
    values = {
        tensor.name: np.array(tensor.data, dtype=np.float32)
        for tensor in gguf.GGUFReader(path).tensors
    }
    name = "blk.3.ffn_down_exps.weight"
    sums, counts = values[f"{name}.in_sum2"], values[f"{name}.counts"]
    assert counts.reshape(-1)[2] == 0
    weights = imatrix.weights[name].reshape(sums.shape)
    assert np.array_equal(weights[2], np.ones_like(weights[2]))
    assert np.array_equal(weights[1], sums[1] / counts.reshape(-1)[1])
    assert (imatrix.chunks, imatrix.dataset) == (17, "wiki.train")
    check_imatrix(imatrix, MODEL)


def test_old_divides_by_calls(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    write_old_imatrix(path, MODEL)
    imatrix = read_imatrix(path)
    assert set(imatrix.weights) == {item.name for item in MODEL.tensors if len(item.shape) > 1}
    assert imatrix.chunks == 17
    assert imatrix.weights["blk.0.attn_q.weight"].mean() == pytest.approx(0.5, abs=0.1)


def test_keys_name_the_file_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 100 + ".gguf")
    write_gguf_imatrix(path, MODEL)
    keys = imatrix_keys(read_imatrix(path))
    assert key_value(keys, "quantize.imatrix.file") == "é" * 63
    assert key_value(keys, "quantize.imatrix.chunks_count") == 17


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_gguf_imatrix(path, GEOMETRIES["llama 65B"].model)
    other: GgufModel = GEOMETRIES["llama"].model
    with pytest.raises(InputError, match="does not fit tensor"):
        check_imatrix(read_imatrix(path), other)
    assert fitting_weights(read_imatrix(path), other) == {}


@pytest.mark.parametrize("format_name", ["gguf", "old"])
def test_damage_is_at_most_an_input_error(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "i"
    write = write_gguf_imatrix if format_name == "gguf" else write_old_imatrix
    write(path, GEOMETRIES["llama of one layer"].model)
    whole = path.read_bytes()

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.binary(max_size=8))
    def damage(place: int, other: bytes) -> None:
        path.write_bytes(whole[:place] + other + whole[place + len(other) :][: 2 * place])
        with suppress(InputError):
            assert read_imatrix(path).weights

    damage()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "i.dat"
    write_old_imatrix(path, MODEL, first=value)
    with pytest.raises(InputError, match="the importance matrix is damaged") as caught:
        read_imatrix(path)
    assert "NaN or infinity" in caught.value.found
