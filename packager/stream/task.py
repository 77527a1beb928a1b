"""The chunks of a plan as tasks: rows to be merged, values to be cast, bytes to be kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch

from packager.dtype import ITEM_BYTES
from packager.merge import RowUpdate, arithmetic_dtype, cast_values, merge_rows
from packager.plan import PlannedTensor
from packager.plan.value import FourBitPart
from packager.quantisation.encoding import FOUR_BIT_BLOCK, QuantisedRef
from packager.rowreader import OpenFiles, as_matrix, read_rows, torch_dtype
from packager.stream.chunk import CHUNK_BYTES, Chunk, Origin, Task, not_finite
from packager.stream.fourbit import PackTask, Scales, ScalesTask, describe_weight
from packager.tensorfile import TensorRef, read_exactly
from packager.updatereader import AdapterTensors, find_source, read_updates


@dataclass(frozen=True)
class RowTask:
    """One chunk to be made: rows of a matrix, elements that change their type, or kept bytes.

    Attributes:
        tensor: What the chunk is part of.
        ref: What it is made from; where nothing needs rows, as one column.
        first: Row that it begins with.
        count: Of rows.
        updates: Of the tensor.
        files: Where the rows are read.
    """

    tensor: PlannedTensor
    ref: TensorRef
    first: int
    count: int
    updates: tuple[RowUpdate, ...]
    files: OpenFiles

    def run(self, buffers: SimpleQueue[bytearray]) -> Chunk:
        """Reads and computes the chunk, in a buffer taken from `buffers`."""
        width_in = self.ref.shape[1] * ITEM_BYTES[self.ref.dtype]
        width_out = self.ref.shape[1] * ITEM_BYTES[self.tensor.dtype]
        buffer = buffers.get()
        needed = self.count * max(width_in, width_out)
        if len(buffer) < needed:
            buffer = bytearray(needed)
        data = memoryview(buffer)[: self.count * width_out]
        origin = None
        if _is_kept(self.tensor, self.ref):
            offset = self.ref.offset + self.first * width_in
            origin = Origin(self.files.descriptor(self.ref.file), offset)
            read_exactly(origin.descriptor, data, offset, self.ref)
        else:
            self._compute(memoryview(buffer), data)
        return Chunk(
            tensor=self.tensor,
            offset=self.first * width_out,
            data=data,
            origin=origin,
            release=lambda: buffers.put(buffer),
        )

    def _compute(self, buffer: memoryview, data: memoryview) -> None:
        values = read_rows(self.ref, self.first, self.count, self.files, buffer)
        out = torch.frombuffer(data, dtype=torch_dtype(self.tensor.dtype)).view(values.shape)
        if out.element_size() > values.element_size():
            values = values.clone()  # a wider output overwrites what is still to be read
        if self.updates:
            finite = merge_rows(values, self.updates, self.first, out)
        else:
            finite = cast_values(values, out)
        if not finite:
            raise not_finite(self.tensor.name, self.ref, self.tensor.dtype)


def plan_tasks(
    tensors: tuple[PlannedTensor, ...],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
    files: OpenFiles,
) -> Iterator[Task]:
    """Yields the tasks of tensors, in order; what each tensor needs is read when its turn comes.

    Args:
        tensors: What to make.
        base: Base tensors by name.
        adapters: Adapter tensors.
        files: Where they are read.
    """
    sources = _Sources(base, adapters, files)
    scales: Scales | None = None
    for tensor in tensors:
        part = tensor.four_bit
        if part is None:
            yield from sources.plan_rows(tensor)
        elif part.part == "weight":
            tasks = list(sources.plan_packing(tensor, part))
            scales = tasks[0].scales if tasks else None
            yield from tasks
        elif part.part == "absmax":
            assert scales is not None, tensor.name
            yield ScalesTask(tensor, scales)
            scales = None
        else:
            yield describe_weight(tensor, part)


@dataclass(frozen=True)
class _Sources:
    """What tasks read."""

    base: Mapping[str, TensorRef]
    adapters: AdapterTensors
    files: OpenFiles

    def plan_rows(self, tensor: PlannedTensor) -> Iterator[RowTask]:
        ref, updates = self._open(tensor, tensor.dtype)
        if tensor.deltas or isinstance(ref, QuantisedRef):
            matrix = as_matrix(ref, by_output=tensor.by_output)
        else:
            matrix = replace(ref, shape=(math.prod(ref.shape), 1))
        for first, count in _steps(matrix, 1):
            yield RowTask(tensor, matrix, first, count, updates, self.files)

    def plan_packing(self, tensor: PlannedTensor, part: FourBitPart) -> Iterator[PackTask]:
        ref, updates = self._open(tensor, part.dtype)
        matrix = as_matrix(ref)
        steps = list(_steps(matrix, FOUR_BIT_BLOCK // math.gcd(matrix.shape[1], FOUR_BIT_BLOCK)))
        blocks = -(-math.prod(part.shape) // FOUR_BIT_BLOCK)
        scales = Scales(torch.empty(blocks, dtype=torch.float32), len(steps))
        for first, count in steps:
            yield PackTask(tensor, part, matrix, first, count, updates, self.files, scales)

    def _open(self, tensor: PlannedTensor, dtype: str) -> tuple[TensorRef, tuple[RowUpdate, ...]]:
        ref = find_source(tensor, self.base, self.adapters)
        self.files.descriptor(ref.file)
        if not tensor.deltas:
            return ref, ()
        arithmetic = arithmetic_dtype(torch_dtype(dtype))
        return ref, read_updates(tensor, ref, self.adapters, arithmetic, self.files, base=self.base)


def _steps(matrix: TensorRef, whole: int) -> Iterator[tuple[int, int]]:
    """Yields (first row, rows) of chunks; all but the last are of a multiple of `whole` rows."""
    total, width = matrix.shape
    step = max(1, CHUNK_BYTES // max(1, width * ITEM_BYTES[matrix.dtype]))
    step = max(1, step // whole) * whole
    for first in range(0, total if width else 0, step):
        yield first, min(step, total - first)


def _is_kept(tensor: PlannedTensor, ref: TensorRef) -> bool:
    """Tells whether the output holds the bytes of what it is made from.

    What an adapter holds is looked at: its training may have diverged.
    """
    of_base = tensor.source_adapter is None and not isinstance(ref, QuantisedRef)
    return of_base and not tensor.deltas and tensor.dtype == ref.dtype
