"""A GGUF LoRA: every scale folded into B, its rows in llama.cpp's order, one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from packager.dtype import TORCH_NAMES
from packager.errors import AdapterError, output_error
from packager.gguf.header import padded
from packager.manifest import FileEntry
from packager.plan import GgufLoraPlan, LoraFactor
from packager.plan.ggufadapter import render_lora_start
from packager.rowreader import read_rows
from packager.sequential import SequentialFile
from packager.tensorfile import TensorRef


def write_gguf_lora(
    folder: Path, plan: GgufLoraPlan, tensors: Mapping[str, TensorRef]
) -> FileEntry:
    """Writes the file.

    Args:
        folder: Where to; it exists.
        plan: What it holds.
        tensors: The adapter's, by name.

    Raises:
        AdapterError: NaN or infinity in the adapter, or a value too large for the type.
        InputError: The adapter cannot be read.
        OutputError: The disk is full or fails.
    """
    digest = hashlib.sha256()
    path = folder / plan.path
    try:
        file = SequentialFile(path, plan.size)
        try:
            for data in _parts(plan, tensors):
                digest.update(data)
                file.append(data)
            file.finish()
        finally:
            file.close()
    except OSError as problem:
        raise output_error(problem, path) from problem
    return FileEntry(plan.path, plan.size, digest.hexdigest())


def _parts(plan: GgufLoraPlan, tensors: Mapping[str, TensorRef]) -> Iterator[bytes]:
    yield render_lora_start(plan)
    for factor in plan.factors:
        yield _bytes_of(make_factor(factor, tensors[factor.source]), factor, plan.type)


def make_factor(factor: LoraFactor, ref: TensorRef) -> Tensor:
    """Reads one half of an update as the file has it.

    Returns:
        Shape as of the factor, float64: the scale is folded in, rotary rows are in order.
    """
    values = read_rows(ref, 0, ref.shape[0]).double() * factor.scale
    if factor.heads:
        rows, rank = values.shape
        ordered = values.view(factor.heads, 2, rows // factor.heads // 2, rank)
        values = ordered.transpose(1, 2).reshape(rows, rank)
    return values


def _bytes_of(values: Tensor, factor: LoraFactor, kind: str) -> bytes:
    stored = values.to(getattr(torch, TORCH_NAMES[kind])).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise AdapterError(
            f"the adapter tensor {factor.source!r} holds NaN or infinity",
            where=factor.name,
            expected=f"finite values in {kind}",
            hint="the training diverged, or the type is too narrow: use an earlier checkpoint, or "
            "leave --gguf-adapter-type out",
        )
    data = stored.view(torch.uint8).numpy().tobytes()
    return data.ljust(padded(len(data)), b"\0")
