"""The doors: every path that is let through, and for whom. What is not here is closed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorapack_gate.answer import Scope

Kind = Literal["live", "ready", "metrics", "models", "plain", "generate", "tokens"]


@dataclass(frozen=True)
class Door:
    """One path.

    Attributes:
        kind: What is behind it: `generate` asks the engine, `tokens` only a tokenizer.
        methods: Of HTTP.
        chat: Whether its requests hold conversations that a template renders.
    """

    kind: Kind
    methods: tuple[str, ...] = ("GET",)
    chat: bool = False

    @property
    def is_open(self) -> bool:
        """Whether no key is asked."""
        return self.kind in ("live", "ready")

    @property
    def takes_model(self) -> bool:
        """Whether its requests name a model."""
        return self.kind in ("generate", "tokens")


_POST = ("POST",)

DOORS: dict[str, Door] = {
    "/health": Door("live", ("GET", "HEAD")),
    "/ready": Door("ready", ("GET", "HEAD")),
    "/metrics": Door("metrics"),
    "/version": Door("plain"),
    "/v1/models": Door("models"),
    "/v1/chat/completions": Door("generate", _POST, chat=True),
    "/v1/completions": Door("generate", _POST),
    "/tokenize": Door("tokens", _POST, chat=True),
    "/detokenize": Door("tokens", _POST),
}
"""Compared with the whole decoded path: no prefix, no trailing slash, no other spelling."""


def find_path(scope: Scope) -> str:
    """Returns the path of a request below the place that the server itself is mounted at.

    No client says where that is: vLLM alone is at the root, Ray Serve may have it below a prefix.

    Source: ASGI 2.5, HTTP scope, root_path; ray 2.60.0, serve/_private/replica.py: the path holds
    the prefix, which is in root_path as well.
    """
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
