"""The arithmetic of merging: tensors in, tensors out; no files, no names.

`W' = round(W + Σ scale·B·A)`: computed in float32, or in float64 where the output is float32, so
that rounding happens once, to the output dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 18
"""Elements updated at a time: 1 MiB of float32 stays in a core's cache."""


@dataclass(frozen=True)
class Factors:
    """A low-rank update, ready to be added.

    Attributes:
        lora_a: Shape (rank, in_features), in the dtype of the arithmetic.
        lora_b: Shape (out_features, rank), likewise.
        scale: Factor of `lora_b @ lora_a`.
    """

    lora_a: Tensor
    lora_b: Tensor
    scale: float


def arithmetic_dtype(output: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a merge into `output` is computed."""
    return torch.float64 if output == torch.float32 else torch.float32


def merge_rows(base: Tensor, factors: Sequence[Factors], first_row: int, out: Tensor) -> bool:
    """Writes `round(base + Σ scale·B[rows]·A)` into `out`, a cache-sized block at a time.

    Args:
        base: Shape (rows, in_features), float32, bfloat16 or float16.
        factors: Updates, added in order.
        first_row: Row of `lora_b` that belongs to row 0 of `base`.
        out: Shape (rows, in_features), the output dtype. May be `base` itself.

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
        for item in factors:
            rows = item.lora_b[first_row + start : first_row + end]
            block.addmm_(rows, item.lora_a, alpha=item.scale)
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


def add_deltas(values: Tensor, factors: Sequence[Factors], first_row: int) -> bool:
    """Adds `Σ scale·B[rows]·A` in float32, for values that a quantisation rounds later.

    Args:
        values: Shape (rows, in_features), float32; changed in place.
        factors: Updates in float32, added in order.
        first_row: Row of `lora_b` that belongs to row 0 of `values`.

    Returns:
        Whether every element of the result is finite.
    """
    for item in factors:
        rows = item.lora_b[first_row : first_row + values.shape[0]]
        values.addmm_(rows, item.lora_a, alpha=item.scale)
    low, high = torch.aminmax(values)
    limit = torch.finfo(values.dtype).max
    return bool(-limit <= low) and bool(high <= limit)
