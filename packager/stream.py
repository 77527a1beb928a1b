"""Plan → (tensor, bytes) in writing order: read, merged and handed on in chunks of bounded size.

Workers read and compute the next chunks while the caller hashes and writes the last one.
Memory depends on the chunk, on the factors of one module, and on nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch

from packager.dtype import ITEM_BYTES, TORCH_NAMES
from packager.errors import AdapterError
from packager.factorreader import check_finite_values
from packager.merge import RowUpdate, arithmetic_dtype, cast_values, merge_rows
from packager.plan import PlannedTensor
from packager.plan.fourbit import KIND
from packager.plan.value import FourBitPart
from packager.quantisation.blockwise import block_scales, half_codes, pack_halves
from packager.quantisation.encoding import FOUR_BIT_BLOCK, QuantisedRef
from packager.quantisation.state import FourBitState, render_state
from packager.rowreader import OpenFiles, as_matrix, read_exactly, read_rows, torch_dtype
from packager.tensorfile import TensorRef
from packager.updatereader import AdapterTensors, find_source, read_updates

CHUNK_BYTES = 2 << 20
"""Bytes of base data in a chunk, few enough to stay in cache from reading to writing; a row that is
longer makes its chunk longer."""
_IN_FLIGHT = 4


@dataclass(frozen=True)
class Origin:
    """Where an untouched chunk lies in the base, so that the kernel can copy or share it.

    Attributes:
        descriptor: Open file.
        offset: First byte.
    """

    descriptor: int
    offset: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive bytes of one output tensor. `release` must be called once they are used.

    Attributes:
        tensor: Which tensor.
        offset: First byte within the tensor.
        data: The bytes, little-endian, row-major.
        origin: For untouched bytes, where they came from.
        release: Gives the buffer back.
    """

    tensor: PlannedTensor
    offset: int
    data: memoryview
    origin: Origin | None
    release: Callable[[], None]


def stream_tensors(
    tensors: tuple[PlannedTensor, ...],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
    workers: int,
) -> Generator[Chunk, None, None]:
    """Yields every planned tensor in order, in chunks.

    Args:
        tensors: What to make.
        base: Base tensors by name.
        adapters: Adapter tensors.
        workers: Threads that read and compute; torch should start none of its own.

    Yields:
        Chunks, in order; each tensor's chunks are consecutive and cover it. A tensor without
        elements yields none.

    Raises:
        InputError: A source file cannot be read or is shorter than its header says.
        AdapterError: An adapter tensor or a result holds NaN or infinity.
    """
    with ExitStack() as stack:
        files = OpenFiles(stack)
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="merge"))
        buffers: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(_IN_FLIGHT + 1):
            buffers.put(bytearray())
        waiting: deque[Future[Chunk]] = deque()
        try:
            for task in _tasks(tensors, base, adapters, files):
                waiting.append(pool.submit(task.run, buffers))
                if len(waiting) >= _IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def check_finite(tensors: Iterable[TensorRef]) -> None:
    """Reads tensors, a chunk at a time, and refuses those that diverged in training.

    Raises:
        AdapterError: One holds NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    with ExitStack() as stack:
        files = OpenFiles(stack)
        for ref in tensors:
            unit = ITEM_BYTES[ref.dtype]
            step = CHUNK_BYTES // unit
            for first in range(0, ref.nbytes // unit, step):
                shape = (min(step, ref.nbytes // unit - first),)
                part = replace(ref, offset=ref.offset + first * unit, shape=shape)
                check_finite_values(ref, read_rows(part, 0, shape[0], files))


@dataclass(frozen=True)
class _FourBitTask:
    """One chunk of the values or the scales of a weight in four bits; whole blocks of it.

    Attributes:
        tensor: What the chunk is part of.
        part: What it holds of the weight.
        ref: What the weight is made from, as a matrix.
        first: Row that it begins with.
        count: Of rows.
        updates: Of the weight.
        files: Where the rows are read.
    """

    tensor: PlannedTensor
    part: FourBitPart
    ref: TensorRef
    first: int
    count: int
    updates: tuple[RowUpdate, ...]
    files: OpenFiles

    def run(self, _buffers: SimpleQueue[bytearray]) -> Chunk:
        """Reads, merges, rounds as the weight would be stored, and quantises."""
        values = read_rows(self.ref, self.first, self.count, self.files)
        rounded = torch.empty(values.shape, dtype=torch_dtype(self.part.dtype))
        if self.updates:
            finite = merge_rows(values, self.updates, self.first, rounded)
        else:
            finite = cast_values(values, rounded)
        if not finite:
            raise _not_finite(self.tensor.name, self.ref, self.part.dtype)
        start = self.first * self.ref.shape[1]
        if self.part.part == "weight":
            made, offset = pack_halves(rounded, KIND), start // 2
        else:
            made, offset = block_scales(rounded), start // FOUR_BIT_BLOCK * ITEM_BYTES["F32"]
        return Chunk(self.tensor, offset, made.numpy().data.cast("B"), None, _keep)


@dataclass(frozen=True)
class _WrittenTask:
    """A small tensor that is known without any weight."""

    tensor: PlannedTensor
    data: bytes

    def run(self, _buffers: SimpleQueue[bytearray]) -> Chunk:
        return Chunk(self.tensor, 0, memoryview(self.data), None, _keep)


def _keep() -> None:
    """Gives back a buffer that belongs to nobody else."""


def _not_finite(name: str, ref: TensorRef, dtype: str) -> AdapterError:
    return AdapterError(
        f"the merged tensor {name!r} holds NaN or infinity",
        where=str(ref.file),
        expected=f"finite values in {TORCH_NAMES[dtype]}",
        hint="the training diverged, the base is damaged, or the output dtype is too narrow: try "
        "--dtype bfloat16",
    )


@dataclass(frozen=True)
class _Task:
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
            raise _not_finite(self.tensor.name, self.ref, self.tensor.dtype)


def _tasks(
    tensors: tuple[PlannedTensor, ...],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
    files: OpenFiles,
) -> Iterator[_Task | _FourBitTask | _WrittenTask]:
    for tensor in tensors:
        written = _written(tensor)
        if written is not None:
            yield _WrittenTask(tensor, written)
            continue
        part = tensor.four_bit
        ref = find_source(tensor, base, adapters)
        files.descriptor(ref.file)
        updates: tuple[RowUpdate, ...] = ()
        if tensor.deltas:
            dtype = arithmetic_dtype(torch_dtype(part.dtype if part else tensor.dtype))
            updates = read_updates(tensor, ref, adapters, dtype, files, base=base)
        if tensor.deltas or part is not None or isinstance(ref, QuantisedRef):
            matrix = as_matrix(ref)
        else:
            matrix = replace(ref, shape=(math.prod(ref.shape), 1))
        total, width = matrix.shape
        step = max(1, CHUNK_BYTES // max(1, width * ITEM_BYTES[ref.dtype]))
        if part is not None:
            whole = FOUR_BIT_BLOCK // math.gcd(width, FOUR_BIT_BLOCK)
            step = max(1, step // whole) * whole
        for first in range(0, total if width else 0, step):
            count = min(step, total - first)
            if part is None:
                yield _Task(tensor, matrix, first, count, updates, files)
            else:
                yield _FourBitTask(tensor, part, matrix, first, count, updates, files)


def _written(tensor: PlannedTensor) -> bytes | None:
    """Returns the bytes of what describes a weight in four bits; of anything else, None."""
    part = tensor.four_bit
    if part is None or part.part in ("weight", "absmax"):
        return None
    if part.part == "quant_map":
        return half_codes(KIND).numpy().tobytes()
    return render_state(FourBitState(KIND, part.dtype, part.shape, FOUR_BIT_BLOCK))


def _is_kept(tensor: PlannedTensor, ref: TensorRef) -> bool:
    """Tells whether the output holds the bytes of what it is made from.

    What an adapter holds is looked at: its training may have diverged.
    """
    of_base = tensor.source_adapter is None and not isinstance(ref, QuantisedRef)
    return of_base and not tensor.deltas and tensor.dtype == ref.dtype


class single_threaded_torch:  # noqa: N801 - reads as a statement where it is used
    """Keeps torch from starting threads of its own below the workers."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
