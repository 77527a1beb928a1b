"""The formulas of merging, each in one place: what an update does to a block of rows.

A tensor is seen as a matrix. An update is applied in place to whole rows of it, in the dtype of
the arithmetic, and says what its own arithmetic may be off by. None keeps anything between blocks,
so that blocks may be made in any order and by any thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_TINY = 1e-300


@dataclass(frozen=True)
class Step:
    """What an update did to some rows, in float64, to be judged.

    Attributes:
        before: Rows that it was applied to, shape (count, width).
        after: What became of them, likewise.
        slack: What the rows before may be off by, likewise.
        first: Row of the matrix that row 0 of these is.
        precision: Unit roundoff of the arithmetic that is judged: 2^-24 or 2^-53.
    """

    before: Tensor
    after: Tensor
    slack: Tensor
    first: int
    precision: float


class RowUpdate(Protocol):
    """One step from the rows that a tensor starts from to those of the output."""

    def apply(self, rows: Tensor, first: int) -> None:
        """Changes rows in place.

        Args:
            rows: Shape (count, width), in the dtype of the arithmetic.
            first: Row of the matrix that row 0 of `rows` is.
        """

    def bound(self, step: Step) -> Tensor:
        """Bounds the error of the rows after the update; shape of the rows."""

    def transposed(self) -> RowUpdate:
        """Returns the same update of the transposed matrix."""


@dataclass(frozen=True)
class Factors:
    """A low-rank update, ready to be added: `W + scale · B·A`.

    Attributes:
        lora_a: Shape (rank, in_features), in the dtype of the arithmetic.
        lora_b: Shape (out_features, rank), likewise.
        scale: Factor of `lora_b @ lora_a`.
    """

    lora_a: Tensor
    lora_b: Tensor
    scale: float

    def apply(self, rows: Tensor, first: int) -> None:
        """Adds the rows' part of the product."""
        rows.addmm_(self.lora_b[first : first + rows.shape[0]], self.lora_a, alpha=self.scale)

    def bound(self, step: Step) -> Tensor:
        """Standard forward bound: (terms + 2) · precision · Σ|terms|."""
        own = self.lora_b[step.first : step.first + step.before.shape[0]]
        magnitude = step.before.abs() + abs(self.scale) * (own.abs() @ self.lora_a.abs())
        return step.slack + magnitude.mul_((self.lora_a.shape[0] + 3) * step.precision)

    def transposed(self) -> Factors:
        """`(B·A)ᵀ = Aᵀ·Bᵀ`."""
        return Factors(self.lora_b.T.contiguous(), self.lora_a.T.contiguous(), self.scale)


@dataclass(frozen=True)
class RowMagnitude:
    """DoRA where a row is an output: `m · V / ‖V‖`, each row by its own norm.

    Source: PEFT 0.21, tuners/lora/dora.py, get_weight_norm, and variants.py, DoraLinearVariant.

    Attributes:
        magnitude: Shape (rows,), float64.
    """

    magnitude: Tensor

    def apply(self, rows: Tensor, first: int) -> None:
        """Gives each row its norm; the norm is summed in float64."""
        norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        factor = self.magnitude[first : first + rows.shape[0]] / norm
        rows.mul_(factor.to(rows.dtype).unsqueeze(1))

    def bound(self, step: Step) -> Tensor:
        """The rows' own error, scaled, and what it does to the norm."""
        norm = torch.linalg.vector_norm(step.before, dim=1, keepdim=True).clamp_min(_TINY)
        spread = torch.linalg.vector_norm(step.slack, dim=1, keepdim=True) / norm
        magnitude = self.magnitude[step.first : step.first + step.before.shape[0]]
        own = magnitude.abs().unsqueeze(1) / norm * step.slack * (1 + spread)
        bound: Tensor = own + step.after.abs() * (spread + 3 * step.precision)
        return bound

    def transposed(self) -> RowUpdate:
        """The norm of a column is not known from rows alone: `Scaling` is made of two passes."""
        raise AssertionError("a matrix with an output for a row is not stored transposed")


@dataclass(frozen=True)
class Scaling:
    """A factor for each column, or for each row.

    Attributes:
        factor: Shape (columns,) or (rows,), float64.
        by_row: Whether it is one for each row.
    """

    factor: Tensor
    by_row: bool = False

    def apply(self, rows: Tensor, first: int) -> None:
        """Multiplies."""
        rows.mul_(self._of_rows(rows.shape[0], first).to(rows.dtype))

    def bound(self, step: Step) -> Tensor:
        """One rounding of the factor and one of the product."""
        factor = self._of_rows(step.before.shape[0], step.first).abs()
        return factor * step.slack + step.after.abs() * (2 * step.precision)

    def transposed(self) -> Scaling:
        """Columns become rows."""
        return Scaling(self.factor, by_row=not self.by_row)

    def _of_rows(self, count: int, first: int) -> Tensor:
        return self.factor[first : first + count].unsqueeze(1) if self.by_row else self.factor


@dataclass(frozen=True)
class StoredRows:
    """The same rows as another form of the tensor holds them.

    Attributes:
        read: Returns rows of it, of a first one and a number.
    """

    read: Callable[[int, int], Tensor]

    def apply(self, rows: Tensor, first: int) -> None:
        """Puts them in the rows' place."""
        rows.copy_(self.read(first, rows.shape[0]))

    def bound(self, step: Step) -> Tensor:
        """What is read is exact."""
        return torch.zeros_like(step.slack)

    def transposed(self) -> RowUpdate:
        """What is read lies by rows."""
        raise AssertionError("a weight that was rounded is not stored transposed")


@dataclass(frozen=True)
class VectorAddition:
    """Values added to a vector, which is a matrix of one row.

    Attributes:
        values: Shape (width,), in the dtype of the arithmetic.
        scale: Their factor.
    """

    values: Tensor
    scale: float

    def apply(self, rows: Tensor, first: int) -> None:  # noqa: ARG002 - there is one row
        """Adds."""
        rows.add_(self.values, alpha=self.scale)

    def bound(self, step: Step) -> Tensor:
        """A product and a sum."""
        magnitude = step.before.abs() + abs(self.scale) * self.values.abs()
        return step.slack + magnitude * (3 * step.precision)

    def transposed(self) -> RowUpdate:
        """A vector is the same either way."""
        return self


@dataclass(frozen=True)
class Replacement:
    """Rows that take the place of what was there.

    Attributes:
        rows: Shape (tokens, width), in the dtype of the arithmetic.
        indices: Rows of the matrix that they are, ascending.
    """

    rows: Tensor
    indices: tuple[int, ...]

    def apply(self, rows: Tensor, first: int) -> None:
        """Copies those of the rows that are replaced."""
        start, end = self._span(first, rows.shape[0])
        for place in range(start, end):
            rows[self.indices[place] - first].copy_(self.rows[place])

    def bound(self, step: Step) -> Tensor:
        """Replaced rows are exact."""
        slack = step.slack.clone()
        start, end = self._span(step.first, slack.shape[0])
        for place in range(start, end):
            slack[self.indices[place] - step.first] = 0
        return slack

    def transposed(self) -> RowUpdate:
        """Rows of tokens are rows wherever they are stored."""
        raise AssertionError("an embedding is not stored transposed")

    def _span(self, first: int, count: int) -> tuple[int, int]:
        """Returns the places of those that lie within some rows."""
        return bisect_left(self.indices, first), bisect_left(self.indices, first + count)
