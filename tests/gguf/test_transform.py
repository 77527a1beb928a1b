"""Every tensor of every family in float32, bit for bit as llama.cpp's own converter writes it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from packager import transform
from packager.base import read_base
from packager.gguf.layout import plan_files
from packager.gguf.mapping import map_model
from packager.plan import PlannedTensor
from packager.progress import Silent
from packager.quantise import WeightSources, write_gguf
from tests.gguf.cases import CASES
from tests.gguf.conftest import Converted


@pytest.mark.parametrize("block_values", [1 << 20, 96])
@pytest.mark.parametrize("case", CASES)
def test_tensors_are_those_of_the_converter(
    converted: dict[str, Converted],
    case: str,
    block_values: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transform, "BLOCK_VALUES", block_values)
    monkeypatch.setattr(transform, "_TRANSPOSED_VALUES", block_values)
    made = converted[case]
    base = read_base(made.model).tensors
    config = json.loads((made.model / "config.json").read_text(encoding="utf-8"))
    model = map_model(config, {name: ref.shape for name, ref in base.items()})
    planned = {
        name: PlannedTensor(name, ref.dtype, ref.shape, "copy", name) for name, ref in base.items()
    }
    write_gguf(
        tmp_path, model, plan_files(model, "F32", "ours"), WeightSources(planned, base, {}),
        threads=2, progress=Silent(),
    )  # fmt: skip
    ours, theirs = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for path in (tmp_path / "ours.gguf", made.gguf)
    )
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        sizes = tensor.shape.tolist()
        # The converter writes a matrix of one row as it is; llama-quantize leaves a vector.
        wanted = sizes[:-1] if len(sizes) == 2 and sizes[1] == 1 else sizes
        assert ours[name].shape.tolist() == wanted, name
        if name.startswith("rope_"):
            # Computed by the converter in float32, by us in float64.
            assert np.allclose(ours[name].data, tensor.data, rtol=1e-6, atol=0)
        else:
            assert ours[name].data.tobytes() == tensor.data.tobytes(), name
