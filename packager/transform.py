"""Merged tensors as GGUF orders them: float32 rows, a block of bounded size at a time.

A block is read, updated and put in order by itself, in any thread; nothing is kept between blocks
but the factors of one module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from packager.errors import AdapterError
from packager.gguf.value import GgufTensor
from packager.merge import RowUpdate, apply_updates
from packager.plan import PlannedTensor
from packager.rowreader import as_matrix, read_rows
from packager.tensorfile import TensorRef
from packager.updatereader import AdapterTensors, find_source, read_updates

BLOCK_VALUES = 1 << 20
"""Values in a block: 4 MiB of float32. A row, or a head to be permuted, may make it longer."""
_TRANSPOSED_VALUES = 8 << 20
"""In a block of a transposed tensor, each of which reads the whole tensor once."""


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one GGUF tensor, to be made.

    Attributes:
        tensor: Which tensor.
        matrix: Which of its stacked matrices; 0 for a tensor of one or two dimensions.
        first: Row of the matrix, as GGUF has it, that the block begins with.
        count: Of rows.
        width: Of a row.
        ref: The stored tensor, its matrices one below the other; None where the GGUF tensor has
            values of its own.
        updates: Of the stored tensor.
        start: Its row with which the matrix begins.
    """

    tensor: GgufTensor
    matrix: int
    first: int
    count: int
    width: int
    ref: TensorRef | None
    updates: tuple[RowUpdate, ...]
    start: int = 0

    def make(self) -> Tensor:
        """Reads, merges and transforms the rows.

        Returns:
            Shape (count, width), float32.

        Raises:
            AdapterError: The result holds NaN or infinity.
            InputError: The base cannot be read.
        """
        if self.ref is None:
            return torch.tensor(self.tensor.values, dtype=torch.float32).view(1, -1)
        if self.tensor.transform == "transpose":
            values = self._read_columns(self.ref)
            updates = tuple(update.transposed() for update in self.updates)
        else:
            values = read_rows(self.ref, self.start + self.first, self.count).float()
            updates = self.updates
        if not apply_updates(values, updates, self.start + self.first):
            raise AdapterError(
                f"the merged tensor {self.ref.name!r} holds NaN or infinity",
                where=str(self.ref.file),
                expected="finite values",
                hint="the training diverged, or the base is damaged",
            )
        return self._transform(values)

    def _read_columns(self, ref: TensorRef) -> Tensor:
        """Reads columns of the stored matrix as rows."""
        values = torch.empty((self.count, self.width), dtype=torch.float32)
        step = max(1, BLOCK_VALUES // ref.shape[1])
        for start in range(0, self.width, step):
            count = min(step, self.width - start)
            stripe = read_rows(ref, self.start + start, count)[
                :, self.first : self.first + self.count
            ]
            values[:, start : start + count].copy_(stripe.T)
        return values

    def _transform(self, values: Tensor) -> Tensor:
        if self.tensor.transform == "add_one":
            return values.add_(1)
        if self.tensor.transform == "permute":
            rows = values.view(-1, 1) if len(self.tensor.shape) == 1 else values
            ordered = rows.view(-1, 2, _head_rows(self.tensor) // 2, rows.shape[1])
            return ordered.transpose(1, 2).reshape(values.shape)
        return values


def plan_blocks(
    tensors: Iterable[GgufTensor],
    planned: Mapping[str, PlannedTensor],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
) -> Iterator[RowBlock]:
    """Yields the blocks of tensors in order; they cover each tensor, one matrix after the other.

    Args:
        tensors: In the order wanted.
        planned: Merged tensors by name, with their updates.
        base: Base tensors by name.
        adapters: Adapter tensors.

    Raises:
        AdapterError: A factor holds NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    for tensor in tensors:
        if not tensor.sources:
            yield RowBlock(tensor, 0, 0, 1, len(tensor.values), None, ())
        matrix = 0
        for source in tensor.sources:
            merged = planned[source]
            stored = find_source(merged, base, adapters)
            updates = read_updates(merged, stored, adapters, torch.float32, base=base)
            rows, width = (1, *tensor.shape)[-2:]
            if tensor.transform == "transpose":
                rows, width = width, rows
            whole = as_matrix(stored)
            assert whole.shape[1] == width, tensor.name
            for start in range(0, whole.shape[0], rows):
                for block in _matrix_blocks(tensor, matrix, whole, updates):
                    yield replace(block, start=start)
                matrix += 1


def _matrix_blocks(
    tensor: GgufTensor, matrix: int, ref: TensorRef, updates: tuple[RowUpdate, ...]
) -> Iterator[RowBlock]:
    rows, width = (1, *tensor.shape)[-2:]
    limit = _TRANSPOSED_VALUES if tensor.transform == "transpose" else BLOCK_VALUES
    step = max(1, limit // width)
    if tensor.transform == "permute" and rows > 1:
        head_rows = _head_rows(tensor)
        step = max(1, step // head_rows) * head_rows
    for first in range(0, rows, step):
        yield RowBlock(tensor, matrix, first, min(step, rows - first), width, ref, updates)


def _head_rows(tensor: GgufTensor) -> int:
    rows = tensor.shape[0] if len(tensor.shape) == 1 else tensor.shape[-2]
    return rows // tensor.heads
