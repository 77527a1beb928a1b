"""What a stream is made of: consecutive bytes of one output tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from packager.dtype import TORCH_NAMES
from packager.errors import AdapterError
from packager.plan import PlannedTensor
from packager.tensorfile import TensorRef

CHUNK_BYTES = 2 << 20
"""Bytes of base data in a chunk, few enough to stay in cache from reading to writing; a row that is
longer makes its chunk longer."""


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


class Task(Protocol):
    """One chunk to be made, in any thread."""

    def run(self, buffers: SimpleQueue[bytearray]) -> Chunk:
        """Makes it, in a buffer taken from `buffers` or in memory of its own."""
        ...


def keep() -> None:
    """Gives back a buffer that belongs to nobody else."""


def not_finite(name: str, ref: TensorRef, dtype: str) -> AdapterError:
    """Refuses a merged tensor that holds NaN or infinity.

    Args:
        name: Of the tensor.
        ref: What it is made from.
        dtype: That it was rounded to.
    """
    return AdapterError(
        f"the merged tensor {name!r} holds NaN or infinity",
        where=str(ref.file),
        expected=f"finite values in {TORCH_NAMES[dtype]}",
        hint="the training diverged, the base is damaged, or the output dtype is too narrow: try "
        "--dtype bfloat16",
    )
