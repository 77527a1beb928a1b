"""A weight in bitsandbytes' four bits: merged once, its scales kept until their own tensor comes.

The scales are a value in 64 of the weight. A plan has them right behind the packed values, so that
those of one weight, or of the next one besides, are in memory at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Condition

import torch
from torch import Tensor

from packager.errors import AdapterError
from packager.merge import RowUpdate, cast_values, merge_rows
from packager.plan import PlannedTensor
from packager.plan.fourbit import KIND
from packager.plan.value import FourBitPart
from packager.quantisation.blockwise import block_scales, half_codes, pack_halves
from packager.quantisation.encoding import FOUR_BIT_BLOCK
from packager.quantisation.state import FourBitState, render_state
from packager.rowreader import OpenFiles, read_rows, torch_dtype
from packager.stream.chunk import Chunk, keep, not_finite
from packager.tensorfile import TensorRef


@dataclass
class Scales:
    """The scales of one weight, filled in by the tasks that pack its values.

    Attributes:
        values: One for each block, float32.
        waiting: Tasks that have not ended yet.
        changed: Told when one ends.
    """

    values: Tensor
    waiting: int
    changed: Condition = field(default_factory=Condition)

    def end(self) -> None:
        """Counts a task that ended, well or not: its own failure is raised before ours is."""
        with self.changed:
            self.waiting -= 1
            self.changed.notify_all()

    def wait(self) -> Tensor:
        """Returns the scales once all tasks, which were started before, have ended."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting <= 0)
        return self.values


@dataclass(frozen=True)
class PackTask:
    """One chunk of the values of a weight; whole blocks of it.

    Attributes:
        tensor: What the chunk is part of.
        part: What it holds of the weight.
        ref: What the weight is made from, as a matrix.
        first: Row that it begins with.
        count: Of rows.
        updates: Of the weight.
        files: Where the rows are read.
        scales: Of the weight.
    """

    tensor: PlannedTensor
    part: FourBitPart
    ref: TensorRef
    first: int
    count: int
    updates: tuple[RowUpdate, ...]
    files: OpenFiles
    scales: Scales

    def run(self, _buffers: SimpleQueue[bytearray]) -> Chunk:
        """Reads, merges, rounds as the weight would be stored, and quantises."""
        try:
            rounded = self._merge()
            start = self.first * self.ref.shape[1]
            own = block_scales(rounded)
            block = start // FOUR_BIT_BLOCK
            self.scales.values[block : block + len(own)] = own
            packed = pack_halves(rounded, own, KIND)
        finally:
            self.scales.end()
        return Chunk(self.tensor, start // 2, packed.numpy().data.cast("B"), None, keep)

    def _merge(self) -> Tensor:
        values = read_rows(self.ref, self.first, self.count, self.files)
        rounded = torch.empty(values.shape, dtype=torch_dtype(self.part.dtype))
        if self.updates:
            finite = merge_rows(values, self.updates, self.first, rounded)
        else:
            finite = cast_values(values, rounded)
        if not finite:
            raise self._failure()
        return rounded

    def _failure(self) -> AdapterError:
        return not_finite(self.tensor.name, self.ref, self.part.dtype)


@dataclass(frozen=True)
class ScalesTask:
    """The scales of a weight, whose values were packed before.

    Attributes:
        tensor: What they are written as.
        scales: To be waited for.
    """

    tensor: PlannedTensor
    scales: Scales

    def run(self, _buffers: SimpleQueue[bytearray]) -> Chunk:
        """Waits for the scales."""
        return Chunk(self.tensor, 0, self.scales.wait().numpy().data.cast("B"), None, keep)


@dataclass(frozen=True)
class WrittenTask:
    """A small tensor that is known without any weight."""

    tensor: PlannedTensor
    data: bytes

    def run(self, _buffers: SimpleQueue[bytearray]) -> Chunk:
        """Hands it on."""
        return Chunk(self.tensor, 0, memoryview(self.data), None, keep)


def describe_weight(tensor: PlannedTensor, part: FourBitPart) -> WrittenTask:
    """Returns what describes a weight: what its halves stand for, or its state."""
    if part.part == "quant_map":
        return WrittenTask(tensor, half_codes(KIND).numpy().tobytes())
    state = FourBitState(KIND, part.dtype, part.shape, FOUR_BIT_BLOCK)
    return WrittenTask(tensor, render_state(state))
