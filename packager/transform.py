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
from packager.merge import Factors, add_deltas
from packager.plan import PlannedTensor
from packager.stream import AdapterTensors, read_factors, read_rows
from packager.tensorfile import TensorRef

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
        ref: The matrix in the base, shape (rows, width) as stored; None where the tensor has
            values of its own.
        factors: Updates of the matrix as stored.
    """

    tensor: GgufTensor
    matrix: int
    first: int
    count: int
    width: int
    ref: TensorRef | None
    factors: tuple[Factors, ...]

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
            values, factors = self._read_columns(self.ref), _transposed(self.factors)
        else:
            values, factors = read_rows(self.ref, self.first, self.count).float(), self.factors
        if not add_deltas(values, factors, self.first):
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
            stripe = read_rows(ref, start, count)[:, self.first : self.first + self.count]
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
            factors = read_factors(merged.deltas, adapters, torch.float32)
            for ref in _matrices(base[merged.source], tensor):
                yield from _matrix_blocks(tensor, matrix, ref, factors)
                matrix += 1


def _matrices(ref: TensorRef, tensor: GgufTensor) -> Iterator[TensorRef]:
    """Splits a stored tensor of three dimensions into its matrices; a vector is one row."""
    width = ref.shape[-1]
    rows = ref.shape[-2] if len(ref.shape) > 1 else 1
    count = ref.nbytes // replace(ref, shape=(rows, width)).nbytes
    flat = (rows, width)
    wanted = (1, *tensor.shape)[-2:]
    assert wanted == (flat[::-1] if tensor.transform == "transpose" else flat), tensor.name
    size = ref.nbytes // count
    for number in range(count):
        yield replace(ref, offset=ref.offset + number * size, shape=flat)


def _matrix_blocks(
    tensor: GgufTensor, matrix: int, ref: TensorRef, factors: tuple[Factors, ...]
) -> Iterator[RowBlock]:
    rows, width = (1, *tensor.shape)[-2:]
    limit = _TRANSPOSED_VALUES if tensor.transform == "transpose" else BLOCK_VALUES
    step = max(1, limit // width)
    if tensor.transform == "permute" and rows > 1:
        head_rows = _head_rows(tensor)
        step = max(1, step // head_rows) * head_rows
    for first in range(0, rows, step):
        yield RowBlock(tensor, matrix, first, min(step, rows - first), width, ref, factors)


def _head_rows(tensor: GgufTensor) -> int:
    rows = tensor.shape[0] if len(tensor.shape) == 1 else tensor.shape[-2]
    return rows // tensor.heads


def _transposed(factors: tuple[Factors, ...]) -> tuple[Factors, ...]:
    """Returns the factors of the transposed update: `(B·A)ᵀ = Aᵀ·Bᵀ`."""
    return tuple(
        Factors(item.lora_b.T.contiguous(), item.lora_a.T.contiguous(), item.scale)
        for item in factors
    )
