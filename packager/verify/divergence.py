"""How far two predictions lie apart; computed in float64 from float32 logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KL_CEILING = 1000.0
"""In nats. A distribution that is not finite counts as this far off, so that figures stay numbers
and JSON stays valid; no usable model comes near it."""

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Divergence:
    """How far another model's predictions lie from the truth's on one passage.

    Attributes:
        kl: KL(truth ‖ other) of every position, in nats, between 0 and `KL_CEILING`.
        agreeing: Positions with the same most likely next token.
        surprise: Sum over the passage of log p(truth) − log p(other) of the token that
            follows, in nats.
    """

    kl: tuple[float, ...]
    agreeing: int
    surprise: float


def measure_divergence(truth: Tensor, other: Tensor, ids: tuple[int, ...]) -> Divergence:
    """Compares two predictions of the same passage.

    Args:
        truth: Logits, shape (len(ids) − 1, vocabulary), float32, finite; row i predicts
            `ids[i + 1]`.
        other: Logits or log-probabilities of the same shape.
        ids: Token ids of the passage.
    """
    kl: list[float] = []
    surprise = 0.0
    following = torch.tensor(ids[1:])
    for start in range(0, len(truth), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        log_p = torch.log_softmax(truth[rows].double(), -1)
        log_q = torch.log_softmax(other[rows].double(), -1)
        wanted = following[rows, None]
        gap = _bounded(log_p.gather(1, wanted) - log_q.gather(1, wanted))
        surprise += float(gap.sum())
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
        # Rounding leaves values like -1e-16 where both are equal.
        kl += _bounded(each).clamp(min=0).tolist()
    agreeing = int((truth.argmax(-1) == other.argmax(-1)).sum())
    return Divergence(tuple(kl), agreeing, surprise)


def squared_distances(truth: Tensor, other: Tensor) -> list[float]:
    """Returns ‖other − truth‖² / ‖truth‖² of each row, at most `KL_CEILING`.

    Args:
        truth: Vectors, shape (rows, width), float32, finite.
        other: Likewise.
    """
    sizes = truth.double().square().sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
    gaps = (other.double() - truth.double()).square().sum(-1)
    return _bounded(gaps / sizes).tolist()


def _bounded(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=KL_CEILING).clamp(-KL_CEILING, KL_CEILING)
