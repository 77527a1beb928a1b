"""Base + adapter in float64, row by row in the order in which GGUF has the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from packager.gguf.value import GgufTensor
from packager.merge import Factors
from packager.plan import PlannedTensor
from packager.stream import AdapterTensors, read_factors, read_rows
from packager.tensorfile import TensorRef

_BLOCK_VALUES = 1 << 19
_FLOAT32 = 2.0**-24


@dataclass(frozen=True)
class TruthSources:
    """What the truth is made from.

    Attributes:
        base: Base tensors by name.
        adapters: Adapter tensors.
    """

    base: Mapping[str, TensorRef]
    adapters: AdapterTensors


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a GGUF tensor; a vector is one row.

    Attributes:
        matrix: Which of its stacked matrices.
        first: Row of the tensor, all matrices counted, that `truth` begins with.
        truth: Shape (rows, width), float64.
        slack: What arithmetic in float32 may be off by, same shape, float64.
        change: What the adapter adds, same shape, float64; None where it adds nothing.
    """

    matrix: int
    first: int
    truth: Tensor
    slack: Tensor
    change: Tensor | None = None


def stream_truth(
    tensor: GgufTensor, merged: Mapping[str, PlannedTensor], sources: TruthSources
) -> Iterator[Rows]:
    """Yields the rows of a tensor, a block at a time.

    Args:
        tensor: Which tensor of the file.
        merged: The merged model's tensors by name.
        sources: Base and adapter.

    Raises:
        InputError: A source cannot be read.
        AdapterError: A factor holds NaN or infinity.
    """
    if tensor.values:
        truth = torch.tensor([tensor.values], dtype=torch.float32).double()
        yield Rows(0, 0, truth, torch.zeros_like(truth))
    number = 0
    for name in tensor.sources:
        factors = read_factors(merged[name].deltas, sources.adapters, torch.float64)
        for ref in _matrices(sources.base[merged[name].source]):
            yield from _stream_matrix(tensor, number, ref, factors)
            number += 1


def _matrices(ref: TensorRef) -> list[TensorRef]:
    """Takes apart experts that the base stores stacked."""
    if len(ref.shape) < 3:
        return [ref]
    flat, size = ref.shape[-2:], ref.nbytes // math.prod(ref.shape[:-2])
    return [
        replace(ref, offset=ref.offset + start, shape=flat) for start in range(0, ref.nbytes, size)
    ]


def _stream_matrix(
    tensor: GgufTensor, number: int, ref: TensorRef, factors: tuple[Factors, ...]
) -> Iterator[Rows]:
    if len(ref.shape) < 2:
        vector = read_rows(ref, 0, ref.shape[0] if ref.shape else 1).double()
        order = _row_order(tensor, len(vector))
        truth = _finish(tensor, vector[order].reshape(1, -1))
        yield Rows(number, number, truth, torch.zeros_like(truth))
        return
    rows, width = tensor.shape[-2:]
    start = number * rows
    order = _row_order(tensor, rows)
    step = max(1, _BLOCK_VALUES // width)
    for first in range(0, rows, step):
        wanted = order[first : first + step]
        base, change, slack = _merge_rows(tensor, ref, factors, wanted)
        truth = base if change is None else base + change
        yield Rows(number, start + first, _finish(tensor, truth), slack, change)


def _row_order(tensor: GgufTensor, rows: int) -> Tensor:
    """Returns which row of the merged tensor each row of the file is.

    Source: llama.cpp 0c1e57098, conversion/llama.py, permute: the two halves of each head, which
    transformers rotates against each other, are interleaved.
    """
    plain = torch.arange(rows)
    if tensor.transform != "permute":
        return plain
    half = rows // tensor.heads // 2
    head, within = plain // (2 * half), plain % (2 * half)
    return head * 2 * half + (within % 2) * half + within // 2


def _merge_rows(
    tensor: GgufTensor, ref: TensorRef, factors: tuple[Factors, ...], wanted: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Makes some rows: the base's, what is added, a bound on the error of float32 arithmetic.

    Standard forward bound: (terms + 2) · 2^-24 · Σ|terms|.
    """
    if tensor.transform == "transpose":
        whole = read_rows(ref, 0, ref.shape[0]).double()
        base = whole[:, wanted].T.contiguous()
    else:
        low, high = int(wanted.min()), int(wanted.max())
        span = read_rows(ref, low, high - low + 1).double()
        base = span[wanted - low]
    if not factors:
        return base, None, torch.zeros_like(base)
    magnitude = base.abs()
    change = torch.zeros_like(base)
    terms = 2
    for item in factors:
        # The factors are those of the tensor as the base stores it.
        lora_b, lora_a = item.lora_b, item.lora_a
        if tensor.transform == "transpose":
            lora_b, lora_a = lora_a.T, lora_b.T
        own = lora_b[wanted]
        change.addmm_(own, lora_a, alpha=item.scale)
        magnitude = magnitude + abs(item.scale) * (own.abs() @ lora_a.abs())
        terms += item.lora_a.shape[0] + 1
    return base, change, magnitude * (terms * _FLOAT32)


def _finish(tensor: GgufTensor, truth: Tensor) -> Tensor:
    return truth + 1.0 if tensor.transform == "add_one" else truth
