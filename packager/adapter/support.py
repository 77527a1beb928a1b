"""What becomes of a feature in a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from packager.manifest import Target

Status = Literal["works", "normalised", "merge-only", "not possible"]
TARGETS: tuple[Target, ...] = ("adapter", "merged", "ollama", "gguf-adapter", "vllm")

VLLM_CHECKED = "vLLM 0.32.0"


@dataclass(frozen=True)
class Support:
    """What becomes of a feature in a target, and why."""

    status: Status
    reason: str


@dataclass(frozen=True)
class Feature:
    """A feature that this adapter uses.

    Attributes:
        name: As PEFT calls it.
        detail: Its value in this adapter, short.
        support: Target → what becomes of it.
    """

    name: str
    detail: str
    support: Mapping[Target, Support]
