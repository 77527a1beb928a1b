"""Tensors and architecture keys of every family, against llama.cpp's own converter."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFReader
from safetensors import safe_open

from packager.gguf import GgufTensor, architecture_keys
from tests.gguf.cases import CASES
from tests.gguf.conftest import Converted
from tests.gguf.reading import map_folder, read_config, read_keys, written


def build(tensor: GgufTensor, folder: Path) -> np.ndarray:
    """Makes a tensor the way that its description says."""
    if tensor.values:
        return np.array(tensor.values, np.float32)
    with safe_open(next(folder.glob("*.safetensors")), "np") as file:
        arrays = [file.get_tensor(name) for name in tensor.sources]
    if tensor.transform == "permute":
        arrays = [
            array.reshape(tensor.heads, 2, len(array) // tensor.heads // 2, *array.shape[1:])
            .swapaxes(1, 2)
            .reshape(array.shape)
            for array in arrays
        ]
    elif tensor.transform == "transpose":
        arrays = [array.T for array in arrays]
    elif tensor.transform == "add_one":
        arrays = [array + np.float32(1) for array in arrays]
    stacked = len(tensor.shape) > arrays[0].ndim
    return np.stack(arrays) if stacked else arrays[0]


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_those_of_the_converter(name: str, converted: dict[str, Converted]) -> None:
    case = converted[name]
    model = map_folder(case.model)
    theirs = GGUFReader(case.gguf).tensors
    assert [each.name for each in model.tensors] == [each.name for each in theirs]
    for our, their in zip(model.tensors, theirs, strict=True):
        assert our.shape == tuple(int(size) for size in reversed(their.shape)), our.name
        data = build(our, case.model)
        assert data.shape == our.shape
        if our.name == "rope_freqs.weight":
            # The converter's power function is not the one of the standard library.
            np.testing.assert_allclose(data, their.data, rtol=1e-6)
        else:
            np.testing.assert_array_equal(data, their.data.reshape(data.shape), our.name)


@pytest.mark.parametrize("name", CASES)
def test_keys_are_those_of_the_converter(name: str, converted: dict[str, Converted]) -> None:
    case = converted[name]
    model = map_folder(case.model)
    ours = written(model.keys)
    theirs = {
        key: value
        for key, value in read_keys(case.gguf).items()
        if key.startswith(f"{model.architecture}.") or key == "general.architecture"
    }
    assert ours == theirs
    assert model.keys == architecture_keys(read_config(case.model))


@pytest.mark.parametrize("name", CASES)
def test_counts_follow_the_configuration(name: str, converted: dict[str, Converted]) -> None:
    model = map_folder(converted[name].model)
    keys = written(model.keys)
    prefix = model.architecture
    heads = keys[f"{prefix}.attention.head_count"][1]
    key_heads = keys.get(f"{prefix}.attention.head_count_kv", (None, heads))[1]
    assert model.layers == keys[f"{prefix}.block_count"][1] == 2
    assert model.experts == keys.get(f"{prefix}.expert_count", (None, 0))[1]
    assert model.grouped_heads == heads // key_heads


def test_names_are_those_of_the_gguf_package(converted: dict[str, Converted]) -> None:
    for name, case in converted.items():
        model = map_folder(case.model)
        known = gguf.TensorNameMap(
            next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == model.architecture), 2
        )
        for tensor in model.tensors:
            if not tensor.values:
                assert known.get_name(tensor.name, (".weight", ".bias")) == tensor.name, name
