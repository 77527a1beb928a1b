"""Base + adapter in float64, row by row in the order in which GGUF has the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from packager.gguf.value import GgufTensor
from packager.merge import RowUpdate, bound_error
from packager.plan import PlannedTensor
from packager.rowreader import as_matrix, read_rows
from packager.tensorfile import TensorRef
from packager.updatereader import AdapterTensors, find_source, read_updates

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
        AdapterError: A tensor of the adapter holds NaN or infinity.
    """
    if tensor.values:
        truth = torch.tensor([tensor.values], dtype=torch.float32).double()
        yield Rows(0, 0, truth, torch.zeros_like(truth))
    number = 0
    for name in tensor.sources:
        ref = find_source(merged[name], sources.base, sources.adapters)
        updates = read_updates(
            merged[name], ref, sources.adapters, torch.float64, base=sources.base
        )
        whole = as_matrix(ref)
        height = _stored_rows(tensor)
        for start in range(0, whole.shape[0], height):
            yield from _stream_matrix(tensor, number, _Matrix(whole, start, height, updates))
            number += 1


@dataclass(frozen=True)
class _Matrix:
    """A stored matrix, perhaps one of several below each other, with the updates of them all."""

    whole: TensorRef
    start: int
    height: int
    updates: tuple[RowUpdate, ...]

    def read(self, first: int, count: int) -> Tensor:
        return read_rows(self.whole, self.start + first, count).double()


def _stored_rows(tensor: GgufTensor) -> int:
    """Returns the rows of one of the stored matrices that a GGUF tensor is made of."""
    rows, width = (1, *tensor.shape)[-2:]
    return width if tensor.transform == "transpose" else rows


def _stream_matrix(tensor: GgufTensor, number: int, matrix: _Matrix) -> Iterator[Rows]:
    rows, width = (1, *tensor.shape)[-2:]
    if len(tensor.shape) < 2:
        base, change, slack = _merge_rows(tensor, matrix, torch.arange(1))
        order = _row_order(tensor, base.shape[1])
        truth = (base if change is None else base + change)[:, order]
        change = None if change is None else change[:, order]
        yield Rows(number, number, _finish(tensor, truth), slack[:, order], change)
        return
    order = _row_order(tensor, rows)
    step = max(1, _BLOCK_VALUES // width)
    for first in range(0, rows, step):
        base, change, slack = _merge_rows(tensor, matrix, order[first : first + step])
        truth = base if change is None else base + change
        yield Rows(number, number * rows + first, _finish(tensor, truth), slack, change)


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
    tensor: GgufTensor, matrix: _Matrix, wanted: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Makes some rows: the base's, what is added, a bound on the error of float32 arithmetic."""
    low, high = int(wanted.min()), int(wanted.max())
    updates = matrix.updates
    if tensor.transform == "transpose":
        base = matrix.read(0, matrix.height)[:, low : high + 1].T.contiguous()
        updates = tuple(update.transposed() for update in updates)
    else:
        base = matrix.read(low, high - low + 1)
    within = wanted - low
    if not updates:
        return base[within], None, torch.zeros_like(base[within])
    first = matrix.start + low
    merged = base.clone()
    for update in updates:
        update.apply(merged, first)
    slack = bound_error(base, updates, first, _FLOAT32)
    return base[within], (merged - base)[within], slack[within]


def _finish(tensor: GgufTensor, truth: Tensor) -> Tensor:
    return truth + 1.0 if tensor.transform == "add_one" else truth
