"""What every cell of the matrix is expected to be; the one place where this is written down."""

from __future__ import annotations

from dataclasses import dataclass

from tests.matrix.architecture import ARCHITECTURES
from tests.matrix.feature import FEATURES


@dataclass(frozen=True)
class Merged:
    """The merged model is PEFT's, on every tensor and in its answers."""


@dataclass(frozen=True)
class Refused:
    """It is refused before a byte is written.

    Attributes:
        error: Name of the error's class.
        says: What its message has to say.
        reason: For the page.
    """

    error: str
    says: str
    reason: str


@dataclass(frozen=True)
class Absent:
    """There is no such adapter: PEFT does not train it.

    Attributes:
        reason: For the page.
        says: What PEFT says, or empty where the architecture has nothing to apply it to.
    """

    reason: str
    says: str = ""


Outcome = Merged | Refused | Absent

_EVERY = "every architecture"
_NOT_YET = Refused("RejectedPlanError", "cannot be carried", "not merged by this version")
_NO_EXPERTS = Absent("the architecture has no experts")
_MIXTURES = ("mixtral", "qwen3-moe", "gpt-oss")

_PENDING = frozenset(FEATURES) - {"lora", "rslora", "patterns", "bfloat16", "dora", "head"}
"""Features that this version does not merge yet."""

_HEAD_IS_SAVED = Absent("a classifier's head is trained whole, not by LoRA")

EXCEPTIONS: dict[str, dict[str, Outcome]] = {
    "head": {"bert": _HEAD_IS_SAVED},
}
"""Feature → architecture, or every one → what it is instead of merged."""


def expect(feature: str, architecture: str) -> Outcome:
    """Returns what a cell is expected to be."""
    if feature.startswith("experts") and architecture not in _MIXTURES:
        return _NO_EXPERTS
    found = EXCEPTIONS.get(feature, {})
    return found.get(architecture, found.get(_EVERY, Merged()))


def cells() -> list[tuple[str, str]]:
    """Returns every cell, an architecture's together, so that its base is made once."""
    return [(feature, architecture) for architecture in ARCHITECTURES for feature in shown()]


def shown() -> list[str]:
    """Returns the features of the page, in its order."""
    return [feature for feature in FEATURES if feature not in _PENDING]
