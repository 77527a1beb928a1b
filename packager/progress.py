"""How long work tells its caller how far it is; the library itself prints nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of stages, of bytes done, and of lines that a user should see."""

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        """A new stage begins, of that many bytes if that is known."""

    def advance(self, count: int) -> None:
        """That many bytes of the stage are done."""

    def say(self, line: str) -> None:
        """A line for the user."""


class Silent:
    """Tells nobody."""

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        """Ignores it."""

    def advance(self, count: int) -> None:
        """Ignores it."""

    def say(self, line: str) -> None:
        """Ignores it."""
