"""Files of API keys: one key a line."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lorapack_gate.file import SettingError, read_file

MIN_KEY_LENGTH = 16

_MAX_BYTES = 1 << 16


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Returns the SHA-256 of every key of a file.

    Raises:
        SettingError: The file is missing, unreadable or empty, or a key is short or not printable.
    """
    lines = read_file(path, _MAX_BYTES).decode("ascii", errors="replace").splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise SettingError(f"the key file {path} is empty: write a key into it")
    for key in keys:
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise SettingError(
                f"the key file {path} holds a key that is not one: expected at least "
                f"{MIN_KEY_LENGTH} printable ASCII characters without spaces, one key a line"
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)
