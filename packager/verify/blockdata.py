"""Data of GGUF files: read, and turned into numbers by the `gguf` package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from packager.errors import InputError
from packager.gguf.block import BlockType, row_bytes


def read_data(path: Path, offset: int, count: int) -> NDArray[np.uint8]:
    """Reads bytes of a file.

    Raises:
        InputError: It cannot be read, or is cut short.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(count)
    except OSError as problem:
        raise InputError(
            "a GGUF file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the disk; copy the bundle again",
        ) from problem
    if len(data) != count:
        raise InputError(
            "a GGUF file is cut short",
            where=str(path),
            expected=f"{count} bytes from {offset}",
            found=str(len(data)),
            hint="copy the bundle again, or release it again",
        )
    return np.frombuffer(data, np.uint8)


def dequantise_rows(kind: BlockType, data: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """Returns the values of rows, shape (rows, width), by the `gguf` package."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = data.reshape(-1, row_bytes(kind, width))
    values: NDArray[np.float32] = dequantize(rows, GGMLQuantizationType[kind])
    return np.array(values.reshape(-1, width), np.float32)


def square_error(
    kind: BlockType, data: NDArray[np.uint8], width: int, truth: torch.Tensor
) -> float:
    """Returns Σ(value − truth)² over rows, in float64."""
    return square_sum(torch.from_numpy(dequantise_rows(kind, data, width)).double() - truth)


def square_sum(values: torch.Tensor) -> float:
    """Returns Σ value²."""
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))
