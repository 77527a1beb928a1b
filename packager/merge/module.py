"""A whole module's result in the place of its rows: what another program's layer made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from torch import Tensor

from packager.merge.update import RowUpdate, Step

_FLOAT32 = 2.0**-24
_LOSSES = 8
"""Two runs of one algorithm in float32 differ by a few times what one differs from float64."""


@dataclass(frozen=True)
class ModuleRows:
    """Rows that were made as a whole, of the rows as the updates before left them.

    Attributes:
        values: The whole matrix, in the dtype of the arithmetic.
        make_rough: Makes it once more, in float32, to measure what that loses.
    """

    values: Tensor
    make_rough: Callable[[], Tensor]
    _loss: list[Tensor] = field(default_factory=list, compare=False, repr=False)
    _lock: Lock = field(default_factory=Lock, compare=False, repr=False)

    def apply(self, rows: Tensor, first: int) -> None:
        """Puts the result in the rows' place."""
        rows.copy_(self.values[first : first + rows.shape[0]])

    def bound(self, step: Step) -> Tensor:
        """Measured: the largest difference of a row between float32 and float64, and a rounding."""
        loss = self._losses()[step.first : step.first + step.before.shape[0]]
        scale = _LOSSES * step.precision / _FLOAT32
        return loss * scale + step.after.abs() * (4 * step.precision)

    def transposed(self) -> RowUpdate:
        """The matrix turned."""
        return ModuleRows(self.values.T, lambda: self.make_rough().T)

    def _losses(self) -> Tensor:
        """Returns the largest difference of each row, shape (rows, 1), float64."""
        with self._lock:
            if not self._loss:
                rough = self.make_rough().double().sub_(self.values.double())
                self._loss.append(rough.abs_().amax(dim=1, keepdim=True))
            return self._loss[0]
