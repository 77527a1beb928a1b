"""Reading files that strangers wrote: bounded, strict, and never outside their folder."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from packager.errors import InputError, UnsafeInputError

MAX_CONFIG_BYTES = 16 << 20
"""The largest JSON or text file that is read whole, in bytes."""

MAX_JSON_VALUES = 8_000_000
"""The most values of a JSON document; parsed, they take up to 200 bytes each."""

_HINT_OTHER_FILE = "check that this is the file that you meant"
_MAX_DEPTH = 64
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\\ud800-\udfff]{1,255}")
_MAX_PART_BYTES = 255
_MAX_PARTS = 16
_RESERVED = {"", ".", ".."}
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def check_relative_name(name: str, *, where: str) -> str:
    """Returns `name` if it is a plain relative POSIX path that stays in its folder.

    Args:
        name: A path from a stranger's file, `/`-separated.
        where: The file that holds the name, for the error.

    Raises:
        UnsafeInputError: The name is absolute, climbs with `..`, is empty, too long for a file
            system, or holds control characters, backslashes, half characters or a drive letter.
    """
    parts = name.split("/")
    plain = len(parts) <= _MAX_PARTS and all(map(_is_plain, parts))
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

    Links are followed only where their end lies below `root` or in the blob stores of a Hub
    cache that `root` is a snapshot of.

    Raises:
        UnsafeInputError: The name or its link target lies outside.
    """
    path = root / check_relative_name(name, where=where)
    # Unlike Path.resolve, realpath takes a link to itself for what it is: a file that is missing.
    real_root = Path(os.path.realpath(root))
    allowed = [real_root, *_blob_stores(real_root)]
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(place) for place in allowed):
        return path
    raise UnsafeInputError(
        "a file is a link that leads outside its folder",
        where=str(path),
        expected=f"a file below {real_root}",
        found=str(real),
        hint="replace the link by the file itself",
    )


def _blob_stores(snapshot: Path) -> list[Path]:
    """Returns where the files of a Hub cache's snapshot lie: its repository's blobs, the cache's.

    Source: huggingface_hub 2.4, file_download.py: `models--o--n/snapshots/<commit>/<name>` links to
    `models--o--n/blobs/<digest>`; utils/_shared_blobs.py: what came from Xet storage links on to
    the whole cache's `blobs/<two digits>/<hash>`, a folder that a marker file tells.
    """
    if snapshot.parent.name != "snapshots":
        return []
    repository = snapshot.parent.parent
    shared = repository.parent / "blobs"
    marker = shared / ".huggingface-shared-blobs"
    is_cache = repository.name.startswith("models--") and not shared.is_symlink()
    return [repository / "blobs", *([shared] if is_cache and marker.is_file() else [])]


def check_folder_name(folder: Path) -> None:
    """Refuses a folder whose path cannot be written into a UTF-8 file, such as a manifest.

    Raises:
        InputError: The path holds bytes that are not UTF-8.
    """
    path = str(folder.absolute())
    if _SURROGATE.search(path):
        raise InputError(
            "the folder's path is not UTF-8 text",
            where=repr(path)[:200],
            expected="a name in UTF-8",
            hint="rename the folder",
        )


def find_folder(text: str) -> Path | None:
    """Returns the folder that a text names, `~` expanded, or None where there is none.

    The text may be anything: too long, with null characters, with an unknown user's home.
    """
    try:
        path = Path(text).expanduser()
        return path if text and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


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
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions",
        ) from problem
    if len(data) > max_bytes:
        raise InputError(
            "the file is too large to be what its name says",
            where=str(path),
            expected=f"at most {max_bytes} bytes",
            found="more",
            hint=_HINT_OTHER_FILE,
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


def parse_json_object(data: bytes | str, *, where: str, constants: bool = True) -> dict[str, Any]:
    """Parses one JSON object, refusing what programs read differently or cannot hold.

    Args:
        data: The document.
        where: Its name, for errors.
        constants: Whether to take `NaN` and `Infinity`, which are no JSON, but which
            configurations of models hold since Python writes them.

    Raises:
        InputError: Not JSON in UTF-8, not an object, a key twice, more than `MAX_JSON_VALUES`
            values, nested deeper than 64, or text that holds half a character.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        count = sum(map(text.count, "[{,"))
        if count > MAX_JSON_VALUES:
            raise InputError(
                "the JSON document holds too many values",
                where=where,
                expected=f"at most {MAX_JSON_VALUES:,}",
                found=f"about {count:,}",
                hint=_HINT_OTHER_FILE,
            )
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _unique(pairs, where),
            parse_constant=None if constants else _refuse_constant,
        )
    except (ValueError, RecursionError) as problem:
        raise InputError(
            "the file is not valid JSON",
            where=where,
            found=str(problem)[:200],
            hint="the file may be cut short: copy or download it again",
        ) from problem
    if not isinstance(value, dict):
        raise InputError(
            "the JSON document is not an object",
            where=where,
            expected="{…}",
            found=type(value).__name__,
            hint=_HINT_OTHER_FILE,
        )
    _check_depth(value, where=where, texts=_SURROGATE_ESCAPE.search(text) is not None)
    return value


def read_json_object(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Reads a JSON file that must hold one object.

    Raises:
        InputError: As `read_bytes` and `parse_json_object`.
    """
    return parse_json_object(read_bytes(path, max_bytes=max_bytes), where=str(path))


def _is_plain(part: str) -> bool:
    return (
        part not in _RESERVED
        and _NAME.fullmatch(part) is not None
        and len(part.encode()) <= _MAX_PART_BYTES
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    raise InputError(
        "a JSON key stands twice",
        where=where,
        found=repr(twice)[:200],
        hint="remove one of the two, or download the file again",
    )


def _check_depth(value: Any, *, where: str, texts: bool) -> None:
    """Refuses deep nesting and, where `texts` is set, strings that UTF-8 cannot carry."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        if texts:
            _check_texts(level, where)
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
        hint=_HINT_OTHER_FILE,
    )


def _check_texts(values: list[Any], where: str) -> None:
    for value in values:
        for text in value if isinstance(value, dict) else [value]:
            if isinstance(text, str) and _SURROGATE.search(text):
                raise InputError(
                    "the JSON document holds half a character",
                    where=where,
                    expected="surrogate escapes in pairs",
                    found=repr(text)[:80],
                    hint="do not use this file; ask its author for a clean one",
                )
