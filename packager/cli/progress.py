"""Progress on stderr: bars on a terminal, nothing but the lines for the user in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from packager.verify.figure import printable

if TYPE_CHECKING:
    from tqdm import tqdm


class TerminalProgress:
    """A bar for each stage, drawn by tqdm; a context manager."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._shown = sys.stderr.isatty()

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def stage(self, title: str, total_bytes: int | None = None) -> None:
        """Begins a new bar; small totals count steps, not bytes."""
        self._close()
        if self._shown:
            from tqdm import tqdm

            counts_bytes = total_bytes is None or total_bytes > 10_000
            self._bar = tqdm(
                total=total_bytes,
                desc=f"{title:<22}",
                unit="B" if counts_bytes else "",
                unit_scale=counts_bytes,
                # Of how much there was to do, nothing is known; then nothing is left to see.
                leave=total_bytes is not None,
                dynamic_ncols=True,
                file=sys.stderr,
            )

    def advance(self, count: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(count)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        click.echo(printable(line), err=True)
        if self._bar is not None:
            self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
