"""Weights packed in four bits as they are streamed: in one pass, and with an end on a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import save_file
from torch import Tensor

from packager.errors import AdapterError
from packager.plan import PlannedTensor
from packager.plan.fourbit import quantise_planned
from packager.stream import CHUNK_BYTES, stream_tensors
from packager.tensorfile import read_header
from tests.counting import bytes_read


def stream(folder: Path, tensors: dict[str, Tensor], workers: int) -> dict[str, bytes]:
    save_file(tensors, folder / "model.safetensors")
    refs = {ref.name: ref for ref in read_header(folder / "model.safetensors").tensors}
    planned = [
        PlannedTensor(ref.name, ref.dtype, ref.shape, "copy", ref.name) for ref in refs.values()
    ]
    found: dict[str, bytearray] = {}
    for chunk in stream_tensors(quantise_planned(planned), refs, {}, workers):
        found.setdefault(chunk.tensor.name, bytearray()).extend(chunk.data)
        chunk.release()
    return {name: bytes(data) for name, data in found.items()}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_weight_is_read_once_and_packed_as_bitsandbytes_does(
    tmp_path: Path, workers: int
) -> None:
    weights = {f"{name}_proj.weight": torch.randn(2048, 1024).bfloat16() for name in "qk"}
    assert all(weight.nbytes > CHUNK_BYTES for weight in weights.values())
    start = bytes_read()
    found = stream(tmp_path, weights, workers)
    assert bytes_read() - start < 1.1 * sum(weight.nbytes for weight in weights.values())
    for name, weight in weights.items():
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
        assert found[name] == packed.numpy().tobytes()
        assert found[f"{name}.absmax"] == state.absmax.numpy().tobytes()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_diverged_is_told_and_nothing_waits_for_it(tmp_path: Path, workers: int) -> None:
    weight = torch.zeros(2048, 1024).bfloat16()
    weight[-1, -1] = torch.inf
    with pytest.raises(AdapterError, match="holds NaN or infinity"):
        stream(tmp_path, {"q_proj.weight": weight}, workers)
