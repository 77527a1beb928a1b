"""Reading files that strangers wrote: bounded, strict, and never outside their folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from packager.errors import InputError, UnsafeInputError

MAX_CONFIG_BYTES = 16 << 20
"""The largest JSON or text file that is read whole, in bytes."""

_MAX_DEPTH = 64
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]+")
_RESERVED = {"", ".", ".."}


def check_relative_name(name: str, *, where: str) -> str:
    """Returns `name` if it is a plain relative POSIX path that stays in its folder.

    Args:
        name: A path from a stranger's file, `/`-separated.
        where: The file that holds the name, for the error.

    Raises:
        UnsafeInputError: The name is absolute, climbs with `..`, is empty, or holds control
            characters, backslashes or a drive letter.
    """
    parts = name.split("/")
    plain = all(part not in _RESERVED and _NAME.fullmatch(part) for part in parts)
    if plain and not (len(parts[0]) > 1 and parts[0][1] == ":"):
        return name
    raise UnsafeInputError(
        "a file name leads outside its folder",
        where=where,
        expected="a relative path below the folder",
        found=repr(name)[:200],
        hint="do not use this file; ask its author for a clean one",
    )


def resolve_inside(root: Path, name: str, *, where: str) -> Path:
    """Returns the path of `name` below `root`, which must not leave it through a link either.

    Links are followed only where their end lies below `root` or in the blob store of a Hub
    cache that `root` is a snapshot of.

    Source: huggingface_hub 1.x, file_download.py: a snapshot `models--o--n/snapshots/<commit>`
    links to `models--o--n/blobs/<digest>`.

    Raises:
        UnsafeInputError: The name or its link target lies outside.
    """
    path = root / check_relative_name(name, where=where)
    real_root = root.resolve()
    allowed = [real_root]
    if real_root.parent.name == "snapshots":
        allowed.append(real_root.parent.parent / "blobs")
    real = path.resolve()
    if any(real.is_relative_to(place) for place in allowed):
        return path
    raise UnsafeInputError(
        "a file is a link that leads outside its folder",
        where=str(path),
        expected=f"a file below {real_root}",
        found=str(real),
        hint="replace the link by the file itself",
    )


def read_bytes(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """Reads a file whole, refusing one larger than `max_bytes`.

    Raises:
        InputError: The file is missing, unreadable, not a regular file, or too large.
    """
    try:
        if not path.is_file():
            raise InputError(
                "the file is missing" if not path.exists() else "this is not a regular file",
                where=str(path),
                hint="check the path",
            )
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as problem:
        raise InputError(
            "the file cannot be read", where=str(path), found=problem.strerror or "an I/O error",
            hint="check the path and its permissions",
        ) from problem
    if len(data) > max_bytes:
        raise InputError(
            "the file is too large to be what its name says",
            where=str(path),
            expected=f"at most {max_bytes} bytes",
            found=f"{path.stat().st_size} bytes",
            hint="check that this is the file that you meant",
        )
    return data


def read_text(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """Reads a UTF-8 text file whole.

    Raises:
        InputError: As `read_bytes`, or the bytes are not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes=max_bytes).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(
            "the file is not UTF-8 text",
            where=str(path),
            found=f"byte 0x{problem.object[problem.start]:02x} at offset {problem.start}",
            hint="save it as UTF-8",
        ) from problem


def parse_json_object(data: bytes | str, *, where: str) -> dict[str, Any]:
    """Parses one JSON object, refusing duplicate keys and absurd nesting.

    Raises:
        InputError: Not JSON, not an object, a key twice, or nested deeper than 64.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError("a JSON key stands twice", where=where, found=repr(twice)[:200])
        return mapping

    try:
        value = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise InputError(
            "the file is not valid JSON",
            where=where,
            found=str(problem)[:200],
            hint="the file may be cut short: copy or download it again",
        ) from problem
    if not isinstance(value, dict):
        raise InputError(
            "the JSON document is not an object", where=where, found=type(value).__name__
        )
    _check_depth(value, where=where)
    return value


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a JSON file that must hold one object.

    Raises:
        InputError: As `read_bytes` and `parse_json_object`.
    """
    return parse_json_object(read_bytes(path, max_bytes=max_bytes), where=str(path))


def _check_depth(value: Any, *, where: str) -> None:
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise InputError(
        "the JSON document is nested too deeply",
        where=where,
        expected=f"at most {_MAX_DEPTH} levels",
        hint="check that this is the file that you meant",
    )
