"""What arithmetic may be off by, for those who compare a result with the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from packager.merge.update import RowUpdate, Step


def bound_error(
    base: Tensor, updates: Sequence[RowUpdate], first_row: int, precision: float
) -> Tensor:
    """Bounds the error of updates, before the rounding to the output dtype.

    Args:
        base: Rows that the updates start from, shape (count, width), float64.
        updates: In order, in float64.
        first_row: Row of the matrix that row 0 of `base` is.
        precision: Unit roundoff of the arithmetic that is judged: 2^-24 or 2^-53.

    Returns:
        Shape of `base`, float64.
    """
    slack = torch.zeros_like(base)
    before = base
    for update in updates:
        after = before.clone()
        update.apply(after, first_row)
        slack = update.bound(Step(before, after, slack, first_row, precision))
        before = after
    return slack
