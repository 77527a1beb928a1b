"""Files that the gate is given, read within bounds."""

from __future__ import annotations

from pathlib import Path

MAX_FILE_BYTES = 64 << 20


class SettingError(Exception):
    """The gate cannot start: what is wrong, in words for who starts the server."""


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Returns the content of a file.

    Raises:
        SettingError: It cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as problem:
        raise SettingError(f"{path} cannot be read: {problem.strerror or problem}") from problem
    if len(data) > limit:
        raise SettingError(f"{path} is larger than {limit} bytes")
    return data
