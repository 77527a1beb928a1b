"""The figures of one recomputed GGUF tensor, and what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from packager.gguf.layout import PlacedTensor
from packager.verify.blockdata import square_sum
from packager.verify.truthrows import Rows

_LEAST_EQUAL = 0.5
"""Share of blocks that must be the very ones. Measured above 0.999; compilers may round ggml's own
arithmetic differently on another processor. Without the adapter next to none are."""

_WEIGHTED = 2.0
"""How much larger, as root mean square, an importance matrix may make the error."""

_MOST_SPREAD = 0.1
"""Spread of the adapter's share in a tensor, by chance, up to which it is judged."""


@dataclass
class Sums:
    """Running figures of one tensor.

    Attributes:
        blocks: Compared.
        equal: To the bit.
        truth: Σ truth², all sums over values in float64.
        error: Σ (stored − truth)².
        again: The same of blocks that ggml made of the truth.
        from_16bit: The same of those that it made of the truth rounded to 16 bits.
        change: Σ change² of what the adapter adds.
        along: Σ (stored − base) · change, which is `change` where all of it was stored.
        values: That the adapter changes.
        bad_row: The first row with a value that is not right, or None.
    """

    blocks: int = 0
    equal: int = 0
    truth: float = 0.0
    error: float = 0.0
    again: float = 0.0
    from_16bit: float = 0.0
    change: float = 0.0
    along: float = 0.0
    values: int = 0
    bad_row: int | None = None


def add_change(rows: Rows, found: torch.Tensor, sums: Sums) -> None:
    """Adds how much of the adapter's change lies in what was found: its part along the change."""
    if rows.change is None:
        return
    sums.change += square_sum(rows.change)
    error = (found - rows.truth).reshape(-1)
    sums.along += square_sum(rows.change) + float(torch.dot(error, rows.change.reshape(-1)))
    sums.values += rows.change.numel()


def judge(placed: PlacedTensor, sums: Sums) -> str:
    """Returns what is wrong with a tensor, or nothing."""
    name = placed.tensor.name
    if sums.bad_row is not None:
        return f"{name} is not base + adapter, first in row {sums.bad_row}"
    if sums.blocks and sums.equal < _LEAST_EQUAL * sums.blocks:
        return (
            f"{name} is not base + adapter: {sums.equal} of {sums.blocks} blocks are what ggml "
            "makes of it"
        )
    # Equal blocks have equal errors; the others are near-ties, whose errors are nearly equal.
    if sums.blocks and not sums.error <= 1.01 * sums.again + 1e-12 * sums.truth:
        return f"{name} lies further from base + adapter than quantising it explains"
    return ""


def judge_blind(placed: PlacedTensor, sums: Sums) -> str:
    """Judges blocks that were weighted by a matrix which is not at hand.

    Weights move single values, yet the error stays of the same size; and errors of rounding, which
    point in all directions, leave the part along the adapter's change as it is. Where they do not
    do so closely enough, nothing is said.
    """
    problem = judge(placed, replace(sums, equal=sums.blocks, error=sums.error / _WEIGHTED**2))
    if problem or not sums.change:
        return problem
    spread = math.sqrt(sums.error / sums.change / sums.values)
    if spread < _MOST_SPREAD and sums.along < 0.5 * sums.change:
        return f"{placed.tensor.name} is not base + adapter: what the adapter adds is not in it"
    return ""
