"""Plan → (tensor, bytes) in writing order: read, merged and handed on in chunks of bounded size.

Two workers read and compute the next chunks while the caller hashes and writes the last one.
Memory depends on the chunk, on the factors of one module, and on nothing else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import torch

from packager.dtype import ITEM_BYTES, TORCH_NAMES
from packager.errors import AdapterError, InputError
from packager.merge import Factors, arithmetic_dtype, cast_values, merge_rows
from packager.plan import Delta, PlannedTensor
from packager.tensorfile import TensorRef, tensor_bytes

CHUNK_BYTES = 2 << 20
"""Bytes of base data in a chunk, few enough to stay in cache from reading to writing; a row that is
longer makes its chunk longer."""
_WORKERS = 2
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


AdapterTensors = Mapping[str, Mapping[str, TensorRef]]
"""Adapter name → tensor name → where it lies."""


def adapter_tensors(adapters: Mapping[str, Iterable[TensorRef]]) -> AdapterTensors:
    """Indexes the tensors of adapters, which are given by name."""
    return {name: {ref.name: ref for ref in refs} for name, refs in adapters.items()}


def stream_tensors(
    tensors: tuple[PlannedTensor, ...],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
) -> Generator[Chunk, None, None]:
    """Yields every planned tensor in order, in chunks.

    Args:
        tensors: What to make.
        base: Base tensors by name.
        adapters: Adapter tensors.

    Yields:
        Chunks, in order; each tensor's chunks are consecutive and cover it. A tensor without
        elements yields none.

    Raises:
        InputError: A source file cannot be read or is shorter than its header says.
        AdapterError: An adapter tensor or a result holds NaN or infinity.
    """
    with ExitStack() as stack:
        files = _OpenFiles(stack)
        pool = stack.enter_context(ThreadPoolExecutor(_WORKERS, thread_name_prefix="merge"))
        stack.enter_context(single_threaded_torch())
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


def read_factors(
    deltas: tuple[Delta, ...],
    adapters: AdapterTensors,
    dtype: torch.dtype,
    files: _OpenFiles | None = None,
) -> tuple[Factors, ...]:
    """Reads the factors of a tensor's updates into memory.

    Raises:
        AdapterError: A factor holds NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    with ExitStack() as stack:
        opened = files or _OpenFiles(stack)
        return tuple(_read_pair(delta, adapters[delta.adapter], dtype, opened) for delta in deltas)


def _read_pair(
    delta: Delta, tensors: Mapping[str, TensorRef], dtype: torch.dtype, files: _OpenFiles
) -> Factors:
    """Reads A and B; where the base is stored the other way round, (B·A)ᵀ is Aᵀ·Bᵀ."""
    lora_a = _read_factor(tensors[delta.lora_a], files, dtype)
    lora_b = _read_factor(tensors[delta.lora_b], files, dtype)
    if delta.transposed:
        lora_a, lora_b = lora_b.T.contiguous(), lora_a.T.contiguous()
    return Factors(lora_a, lora_b, delta.scale)


def check_finite(tensors: Iterable[TensorRef]) -> None:
    """Reads tensors, a chunk at a time, and refuses those that diverged in training.

    Raises:
        AdapterError: One holds NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    with ExitStack() as stack:
        files = _OpenFiles(stack)
        for ref in tensors:
            unit = ITEM_BYTES[ref.dtype]
            step = CHUNK_BYTES // unit
            for first in range(0, ref.nbytes // unit, step):
                shape = (min(step, ref.nbytes // unit - first),)
                part = replace(ref, offset=ref.offset + first * unit, shape=shape)
                _check_values(ref, _read_whole(part, files))


@dataclass(frozen=True)
class _Task:
    """One chunk to be made: rows of a matrix, or a run of bytes."""

    tensor: PlannedTensor
    ref: TensorRef
    descriptor: int
    first: int
    count: int
    factors: tuple[Factors, ...]

    def run(self, buffers: SimpleQueue[bytearray]) -> Chunk:
        """Reads and computes the chunk, in a buffer taken from `buffers`."""
        width_in, width_out = self._unit_bytes()
        buffer = buffers.get()
        needed = self.count * max(width_in, width_out)
        if len(buffer) < needed:
            buffer = bytearray(needed)
        offset = self.ref.offset + self.first * width_in
        source = memoryview(buffer)[: self.count * width_in]
        _read_exactly(self.descriptor, source, offset, self.ref)
        data = memoryview(buffer)[: self.count * width_out]
        if self.tensor.rule != "copy":
            self._compute(source, data)
        return Chunk(
            tensor=self.tensor,
            offset=self.first * width_out,
            data=data,
            origin=Origin(self.descriptor, offset) if self.tensor.rule == "copy" else None,
            release=lambda: buffers.put(buffer),
        )

    def _unit_bytes(self) -> tuple[int, int]:
        """Bytes of a row (of an element where no row is needed), in the base and the output."""
        elements = self.tensor.shape[1] if self.tensor.rule == "lora" else 1
        return elements * ITEM_BYTES[self.ref.dtype], elements * ITEM_BYTES[self.tensor.dtype]

    def _compute(self, source: memoryview, data: memoryview) -> None:
        values = torch.frombuffer(source, dtype=torch_dtype(self.ref.dtype))
        if len(data) > len(source):
            values = values.clone()  # a wider output overwrites what is still to be read
        out = torch.frombuffer(data, dtype=torch_dtype(self.tensor.dtype))
        if self.tensor.rule == "lora":
            shape = (self.count, self.tensor.shape[1])
            finite = merge_rows(values.view(shape), self.factors, self.first, out.view(shape))
        else:
            finite = cast_values(values, out)
        if not finite:
            raise AdapterError(
                f"the merged tensor {self.tensor.name!r} holds NaN or infinity",
                where=str(self.ref.file),
                expected=f"finite values in {TORCH_NAMES[self.tensor.dtype]}",
                hint="the training diverged, the base is damaged, or the output dtype is too "
                "narrow: try --dtype bfloat16",
            )


def _tasks(
    tensors: tuple[PlannedTensor, ...],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
    files: _OpenFiles,
) -> Iterator[_Task]:
    for tensor in tensors:
        ref = base[tensor.source]
        descriptor = files.descriptor(ref.file)
        factors: tuple[Factors, ...] = ()
        unit = ITEM_BYTES[ref.dtype]
        if tensor.rule == "lora":
            dtype = arithmetic_dtype(torch_dtype(tensor.dtype))
            factors = read_factors(tensor.deltas, adapters, dtype, files)
            unit *= tensor.shape[1]
        total = ref.nbytes // unit if unit else 0
        step = max(1, CHUNK_BYTES // max(unit, 1))
        for first in range(0, total, step):
            yield _Task(tensor, ref, descriptor, first, min(step, total - first), factors)


class _OpenFiles:
    """Every source file opened once, closed together."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._descriptors: dict[Path, int] = {}

    def descriptor(self, path: Path) -> int:
        if path not in self._descriptors:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as problem:
                raise InputError(
                    "the file cannot be read",
                    where=str(path),
                    found=problem.strerror or "an I/O error",
                    hint="check the path and its permissions",
                ) from problem
            self._stack.callback(os.close, descriptor)
            self._descriptors[path] = descriptor
        return self._descriptors[path]


class single_threaded_torch:  # noqa: N801 - reads as a statement where it is used
    """Keeps torch from starting threads of its own below the workers."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def torch_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype of a safetensors type name."""
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return dtype


def read_rows(ref: TensorRef, first: int, count: int) -> torch.Tensor:
    """Reads rows of one tensor in its stored dtype; an element is a row of a vector.

    Returns:
        Shape (count, *ref.shape[1:]), or (1,) for a scalar.

    Raises:
        InputError: The file cannot be read or is cut short.
    """
    shape = (count, *ref.shape[1:]) if ref.shape else (1,)
    row_bytes = tensor_bytes(ref.dtype, shape) // count
    part = replace(ref, offset=ref.offset + first * row_bytes, shape=shape)
    with ExitStack() as stack:
        return _read_whole(part, _OpenFiles(stack))


def _read_whole(ref: TensorRef, files: _OpenFiles) -> torch.Tensor:
    if ref.nbytes == 0:
        return torch.empty(ref.shape, dtype=torch_dtype(ref.dtype))
    buffer = bytearray(ref.nbytes)
    _read_exactly(files.descriptor(ref.file), memoryview(buffer), ref.offset, ref)
    return torch.frombuffer(buffer, dtype=torch_dtype(ref.dtype)).view(ref.shape)


def _read_factor(ref: TensorRef, files: _OpenFiles, dtype: torch.dtype) -> torch.Tensor:
    values = _read_whole(ref, files)
    _check_values(ref, values)
    return values.to(dtype)


def _check_values(ref: TensorRef, values: torch.Tensor) -> None:
    # There is no isfinite for eight bits; their values all exist in float32.
    known = values.float() if values.element_size() == 1 else values
    # NaN spreads to both ends; unlike isfinite(), this makes no second copy.
    if known.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(known))).all()):
        raise AdapterError(
            f"the adapter tensor {ref.name!r} holds NaN or infinity",
            where=str(ref.file),
            hint="the training diverged: use an earlier checkpoint",
        )


def _read_exactly(descriptor: int, view: memoryview, offset: int, ref: TensorRef) -> None:
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as problem:
            raise InputError(
                "the file cannot be read",
                where=str(ref.file),
                found=problem.strerror or "an I/O error",
                hint="check the disk; copy or download the file again",
            ) from problem
        if count == 0:
            raise InputError(
                f"the file ends within tensor {ref.name!r}",
                where=str(ref.file),
                expected=f"{ref.offset + ref.nbytes} bytes",
                found=f"{offset + done}",
                hint="the file changed while it was read: copy or download it again",
            )
        done += count
