"""Random weights and a LoRA for a GGUF model of a test, as safetensors files with their plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from packager.gguf.value import GgufModel
from packager.plan import Delta, PlannedTensor
from packager.quantise import WeightSources
from packager.tensorfile import read_header
from packager.updatereader import adapter_tensors

RANK = 4
SCALE = 0.5


@dataclass(frozen=True)
class World:
    """Base and adapter on the disk.

    Attributes:
        base: The base's file.
        adapter: The adapter's file.
        sources: Both, with the plan of the merged tensors.
    """

    base: Path
    adapter: Path
    sources: WeightSources


def write_world(folder: Path, model: GgufModel, dtype: torch.dtype = torch.bfloat16) -> World:
    """Writes one base tensor for each source and a LoRA on every attention and feed-forward one."""
    random = torch.Generator().manual_seed(5)
    base, factors = {}, {}
    for tensor in model.tensors:
        for source in tensor.sources:
            shape = tensor.shape[1:] if len(tensor.sources) > 1 else tensor.shape
            shape = shape[::-1] if tensor.transform == "transpose" else shape
            base[source] = (torch.randn(shape, generator=random) * 0.05).to(dtype)
            if len(shape) == 2 and source.startswith("blk."):
                factors[f"{source}.a"] = torch.randn((RANK, shape[1]), generator=random) * 0.1
                factors[f"{source}.b"] = torch.randn((shape[0], RANK), generator=random) * 0.1
    save_file(base, folder / "base.safetensors")
    save_file(factors, folder / "adapter.safetensors")
    return read_world(folder)


def read_world(folder: Path) -> World:
    """Plans what the files of a folder hold."""
    base, adapter = (folder / f"{name}.safetensors" for name in ("base", "adapter"))
    refs = {ref.name: ref for ref in read_header(base).tensors}
    factors = read_header(adapter).tensors
    adapted = {ref.name.removesuffix(".a") for ref in factors}
    planned = {
        name: PlannedTensor(
            name, ref.dtype, ref.shape, "lora" if name in adapted else "copy", name,
            (Delta("x", name, f"{name}.a", f"{name}.b", RANK, SCALE),) if name in adapted else (),
        )
        for name, ref in refs.items()
    }  # fmt: skip
    return World(base, adapter, WeightSources(planned, refs, adapter_tensors({"x": factors})))


def count_values(model: GgufModel) -> int:
    """Returns the number of values of a model."""
    return sum(math.prod(tensor.shape) for tensor in model.tensors)
