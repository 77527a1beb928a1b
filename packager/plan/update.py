"""The updates that a plan knows, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Axis = Literal["row", "column"]
"""Of a matrix as it is stored."""


@dataclass(frozen=True)
class Delta:
    """One low-rank update `scale · lora_b @ lora_a`.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        lora_a: Tensor name in the adapter's file, shape (rank, in_features).
        lora_b: Tensor name in the adapter's file, shape (out_features, rank).
        rank: Inner dimension.
        scale: Factor.
        base_copy: Tensor name in the adapter's file of a copy of the base's weight, or None.
        transposed: Whether the base stores this weight as (in_features, out_features), so that
            the update is `scale · (lora_b @ lora_a)ᵀ`.
        kind: Of update.
    """

    adapter: str
    module: str
    lora_a: str
    lora_b: str
    rank: int
    scale: float
    base_copy: str | None = None
    transposed: bool = False
    kind: Literal["lora"] = "lora"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses."""
        copy = () if self.base_copy is None else (self.base_copy,)
        return (self.lora_a, self.lora_b, *copy)


@dataclass(frozen=True)
class Magnitude:
    """DoRA: what the updates before it made gets trained norms, `m · V / ‖V‖`.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        magnitude: Tensor name in the adapter's file, one value for each norm.
        axis: What has a norm of its own: each row of the stored matrix, or each column.
        kind: Of update.
    """

    adapter: str
    module: str
    magnitude: str
    axis: Axis = "row"
    kind: Literal["dora"] = "dora"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses."""
        return (self.magnitude,)


Update = Delta | Magnitude


def rule_of(updates: Iterable[Update]) -> str:
    """Returns the name of the rule of a tensor that has updates, such as `lora` or `dora`."""
    kinds = list(dict.fromkeys(update.kind for update in updates))
    if "dora" in kinds:  # which names its low-rank update as well
        kinds = [kind for kind in kinds if kind != "lora"]
    return "+".join(kinds)
