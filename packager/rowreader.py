"""Rows of stored tensors as torch values: the one function through which they are read."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Lock

import torch

from packager.dtype import TORCH_NAMES
from packager.errors import InputError
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.values import read_values
from packager.tensorfile import TensorRef, read_exactly, tensor_bytes


class OpenFiles:
    """Every source file opened once, closed together."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._descriptors: dict[Path, int] = {}
        self._lock = Lock()

    def descriptor(self, path: Path) -> int:
        """Returns a descriptor to read from.

        Raises:
            InputError: The file cannot be opened.
        """
        found = self._descriptors.get(path)
        if found is not None:
            return found
        with self._lock:
            return self._open(path)

    def _open(self, path: Path) -> int:
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


def torch_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype of a safetensors type name."""
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[name])
    return dtype


def as_matrix(ref: TensorRef, *, by_output: bool = False) -> TensorRef:
    """Returns the tensor as the matrix that updates see: a vector is one row of it.

    Args:
        ref: The tensor.
        by_output: Count the first dimension as rows only, and not all before the last.
    """
    border = 1 if by_output else -1
    return replace(ref, shape=(math.prod(ref.shape[:border]), math.prod(ref.shape[border:])))


def read_rows(
    ref: TensorRef,
    first: int,
    count: int,
    files: OpenFiles | None = None,
    buffer: memoryview | None = None,
) -> torch.Tensor:
    """Reads rows of one tensor in its stored dtype; an element is a row of a vector.

    What is stored quantised comes out in float32, before any rounding to the tensor's dtype.

    Args:
        ref: The tensor.
        first: Row to begin with.
        count: Of rows.
        files: Files that are open already.
        buffer: Memory that the rows may be read into, as long as they are or longer.

    Returns:
        Shape (count, *ref.shape[1:]), or (1,) for a scalar.

    Raises:
        InputError: The file cannot be read or is cut short.
    """
    if isinstance(ref, QuantisedRef):
        return read_values(ref, first, count)
    shape = (count, *ref.shape[1:]) if ref.shape else (1,)
    nbytes = tensor_bytes(ref.dtype, shape)
    if not nbytes:
        return torch.empty(shape, dtype=torch_dtype(ref.dtype))
    memory = memoryview(bytearray(nbytes)) if buffer is None else buffer[:nbytes]
    start = ref.offset + first * (nbytes // count)
    with ExitStack() as stack:
        opened = files or OpenFiles(stack)
        read_exactly(opened.descriptor(ref.file), memory, start, ref)
    return torch.frombuffer(memory, dtype=torch_dtype(ref.dtype)).view(shape)


def read_whole(ref: TensorRef, files: OpenFiles | None = None) -> torch.Tensor:
    """Reads a whole tensor in its stored dtype.

    Raises:
        InputError: The file cannot be read or is cut short.
    """
    return read_rows(ref, 0, ref.shape[0] if ref.shape else 1, files).view(ref.shape)
