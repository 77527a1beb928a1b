"""The tasks of a plan in threads, their chunks in order.

Workers read and compute the next chunks while the caller hashes and writes the last one.
Memory depends on the chunk, on the factors of one module, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from queue import SimpleQueue

import torch

from packager.ahead import run_ahead
from packager.plan import PlannedTensor
from packager.rowreader import OpenFiles
from packager.stream.chunk import Chunk
from packager.stream.task import plan_tasks
from packager.tensorfile import TensorRef
from packager.updatereader import AdapterTensors

_IN_FLIGHT = 4


def stream_tensors(
    tensors: tuple[PlannedTensor, ...],
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
    workers: int,
) -> Generator[Chunk, None, None]:
    """Yields every planned tensor in order, in chunks.

    Args:
        tensors: What to make; of a weight in four bits, all parts, the packed values first.
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
        tasks = plan_tasks(tensors, base, adapters, files)
        yield from run_ahead(pool, (partial(task.run, buffers) for task in tasks), _IN_FLIGHT)


class single_threaded_torch:  # noqa: N801 - reads as a statement where it is used
    """Keeps torch from starting threads of its own below the workers."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)
