"""A block of rows merged and rounded once, to the output dtype.

The arithmetic is in float32, or in float64 where the output is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from packager.merge.update import RowUpdate

BLOCK_ELEMENTS = 1 << 18
"""Elements updated at a time: 1 MiB of float32 stays in a core's cache."""


def arithmetic_dtype(output: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a merge into `output` is computed."""
    return torch.float64 if output == torch.float32 else torch.float32


def merge_rows(base: Tensor, updates: Sequence[RowUpdate], first_row: int, out: Tensor) -> bool:
    """Writes the rounded result of all updates into `out`, a cache-sized block at a time.

    Args:
        base: Shape (rows, width), a floating type.
        updates: In order, in the dtype of the arithmetic.
        first_row: Row of the matrix that row 0 of `base` is.
        out: Shape (rows, width), the output dtype. May be `base` itself.

    Returns:
        Whether every element of the result is finite.
    """
    step = max(1, BLOCK_ELEMENTS // max(1, base.shape[1]))
    dtype = arithmetic_dtype(out.dtype)
    scratch = torch.empty((min(step, base.shape[0]), base.shape[1]), dtype=dtype)
    limit = torch.finfo(out.dtype).max
    finite = True
    for start in range(0, base.shape[0], step):
        end = min(start + step, base.shape[0])
        block = scratch[: end - start]
        block.copy_(base[start:end])
        for update in updates:
            update.apply(block, first_row + start)
        low, high = torch.aminmax(block)
        finite = finite and bool(-limit <= low) and bool(high <= limit)
        out[start:end].copy_(block)
    return finite


def cast_values(values: Tensor, out: Tensor) -> bool:
    """Writes `values` rounded to the dtype of `out`; both flat, of one length.

    Returns:
        Whether every element of the result is finite.
    """
    out.copy_(values)
    return bool(torch.isfinite(out).all())


def apply_updates(values: Tensor, updates: Sequence[RowUpdate], first_row: int) -> bool:
    """Applies updates in float32, for values that a quantisation rounds later.

    Args:
        values: Shape (rows, width), float32; changed in place.
        updates: In order, in float32.
        first_row: Row of the matrix that row 0 of `values` is.

    Returns:
        Whether every element of the result is finite.
    """
    for update in updates:
        update.apply(values, first_row)
    low, high = torch.aminmax(values)
    limit = torch.finfo(values.dtype).max
    return bool(-limit <= low) and bool(high <= limit)
