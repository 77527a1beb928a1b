"""How far a transfer to or from an Ollama is, and what Ollama says meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packager.digest import OnBytes
from packager.errors import InputError
from packager.progress import Progress

_CHUNK_BYTES = 1 << 20
_MAX_TEXT_CHARS = 300


class Counter:
    """Adds up what it passes on."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes
        self.total = 0

    def __call__(self, count: int) -> None:
        """Takes bytes that were done."""
        self.total += count
        self._on_bytes(count)


class Steps:
    """Turns what Ollama says of its work into stages."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = ("", "")
        self._done = 0

    def tell(self, status: str, digest: str, total: int, done: int) -> None:
        """Takes one line of what Ollama says; a digest has bytes to count."""
        if (status, digest) != self._stage:
            self._stage, self._done = (status, digest), 0
            self._progress.stage(f"Ollama: {clean_text(status)[:60]}", total or None)
        self._progress.advance(max(0, done - self._done))
        self._done = max(done, self._done)


def read_parts(path: Path, on_bytes: OnBytes) -> Iterator[bytes]:
    """Yields a file's bytes in order, telling of each part when the next one is asked for.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
                on_bytes(len(chunk))
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions",
        ) from problem


def clean_text(text: str) -> str:
    """Returns a server's text in one line of bounded length."""
    return " ".join(text.split())[:_MAX_TEXT_CHARS]
