"""Low-rank updates of some rows only, and of the matrices of a stack one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock

import torch
from torch import Tensor

from packager.merge.update import Factors, RowUpdate, Step

_KEPT = 2
"""Matrices of a stack whose factors are kept: two threads may be at either side of a border."""


@dataclass(frozen=True)
class PartFactors:
    """A low-rank update of consecutive rows.

    Attributes:
        factors: The update of these rows.
        first_row: Of the matrix; its row is row 0 of the factors.
    """

    factors: Factors
    first_row: int

    def apply(self, rows: Tensor, first: int) -> None:
        """Adds the product to those rows that it is for."""
        low, high = self._overlap(rows.shape[0], first)
        if low < high:
            self.factors.apply(rows[low - first : high - first], low - self.first_row)

    def bound(self, step: Step) -> Tensor:
        """That of the factors, for those rows."""
        low, high = self._overlap(step.before.shape[0], step.first)
        if low >= high:
            return step.slack
        part = slice(low - step.first, high - step.first)
        own = Step(
            before=step.before[part],
            after=step.after[part],
            slack=step.slack[part],
            first=low - self.first_row,
            precision=step.precision,
        )
        slack = step.slack.clone()
        slack[part] = self.factors.bound(own)
        return slack

    def transposed(self) -> RowUpdate:
        """Columns have no update of their own here."""
        raise AssertionError("a part of a matrix is not stored transposed")

    def _overlap(self, count: int, first: int) -> tuple[int, int]:
        last = self.first_row + self.factors.lora_b.shape[0]
        return max(first, self.first_row), min(first + count, last)


@dataclass(frozen=True)
class StackFactors:
    """A low-rank update of every matrix of a stack; the factors of few are in memory at a time.

    Attributes:
        read: Returns the update of the matrix of this number.
        height: Rows of one matrix.
    """

    read: Callable[[int], Factors]
    height: int
    _last: dict[int, Factors] = field(default_factory=dict, compare=False, repr=False)
    _lock: Lock = field(default_factory=Lock, compare=False, repr=False)

    def apply(self, rows: Tensor, first: int) -> None:
        """Adds to the rows of each matrix its own product."""
        for part in self._parts(rows.shape[0], first):
            part.apply(rows, first)

    def bound(self, step: Step) -> Tensor:
        """That of each matrix for its rows."""
        for part in self._parts(step.before.shape[0], step.first):
            step = replace(step, slack=part.bound(step))
        return step.slack

    def transposed(self) -> RowUpdate:
        """Stacks are not stored transposed as a whole."""
        raise AssertionError("a stack is not turned")

    def _parts(self, count: int, first: int) -> list[PartFactors]:
        numbers = range(first // self.height, -(-(first + count) // self.height))
        return [PartFactors(self._factors(number), number * self.height) for number in numbers]

    def _factors(self, number: int) -> Factors:
        with self._lock:
            if number not in self._last:
                made = self.read(number)
                while len(self._last) >= _KEPT:
                    del self._last[next(iter(self._last))]
                self._last[number] = made
            return self._last[number]


def cut_pair(
    lora_a: Tensor, lora_b: Tensor, *, transposed: bool, outputs: slice
) -> tuple[Tensor, Tensor]:
    """Returns the factors of some rows of an update.

    Args:
        lora_a: Shape (rank, in_features).
        lora_b: Shape (out_features, rank).
        transposed: Whether the update is `(lora_b @ lora_a)ᵀ`.
        outputs: Its rows.

    Returns:
        A of shape (rank, width) and B of shape (rows, rank).
    """
    if transposed:
        lora_a, lora_b = lora_b.T, lora_a.T
    return lora_a.contiguous(), torch.clone(lora_b[outputs], memory_format=torch.contiguous_format)
