"""Content digests of files, computed with bounded memory and remembered by file identity."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from packager.errors import InputError, OutputError
from packager.manifest import FileEntry
from packager.sequential import read_past_cache
from packager.untrusted import read_json_object

_CHUNK_BYTES = 4 << 20
_MAX_REMEMBERED = 20_000
_TICK_NANOSECONDS = 100_000_000
"""More than a tick of any kernel's clock for file times, which is at most 10 ms on Linux."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were just hashed; for progress."""


def hash_file(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Returns the sha256 of a file as 64 hexadecimal digits, reading 4 MiB at a time.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    return _hash_parts(path, _read_parts(path), on_bytes)


def hash_stored_file(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Returns the sha256 of a file as the disk holds it, past the page cache where that works.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    return _hash_parts(path, read_past_cache(path), on_bytes)


def _hash_parts(path: Path, parts: Iterator[memoryview], on_bytes: OnBytes | None) -> str:
    digest = hashlib.sha256()
    try:
        for part in parts:
            digest.update(part)
            if on_bytes is not None:
                on_bytes(len(part))
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions; copy or download the file again",
        ) from problem
    return digest.hexdigest()


def _read_parts(path: Path) -> Iterator[memoryview]:
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield view[:count]


def hash_files(
    root: Path,
    names: Iterable[str],
    on_bytes: OnBytes | None = None,
    *,
    remember: bool = True,
) -> tuple[FileEntry, ...]:
    """Hashes files below a folder, two at a time, in name order.

    A file whose identity (path, device, inode, size, times in nanoseconds) is remembered from
    an earlier run is not read again.

    Args:
        root: The folder.
        names: Of the files, relative to it.
        on_bytes: Progress.
        remember: Whether to keep what was hashed now for the next run.

    Raises:
        InputError: A file is missing or cannot be read.
    """
    ordered = sorted(names)
    memory = _Memory()
    with ThreadPoolExecutor(2) as pool:
        hashes = list(pool.map(lambda name: memory.hash(root / name, on_bytes), ordered))
    if remember:
        memory.save()
    return tuple(
        FileEntry(name, (root / name).stat().st_size, sha256)
        for name, sha256 in zip(ordered, hashes, strict=True)
    )


def content_digest(entries: Iterable[FileEntry]) -> str:
    """Returns `sha256:<hex>` over the paths, sizes and hashes of files, in path order."""
    lines = (
        json.dumps([entry.path, entry.size, entry.sha256], ensure_ascii=False)
        for entry in sorted(entries, key=lambda entry: entry.path)
    )
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def differing_files(
    wanted: Iterable[FileEntry], found: Iterable[FileEntry]
) -> dict[str, tuple[FileEntry | None, FileEntry | None]]:
    """Returns path → (wanted, found) for every file that is missing, new or different."""
    left: Mapping[str, FileEntry] = {entry.path: entry for entry in wanted}
    right: Mapping[str, FileEntry] = {entry.path: entry for entry in found}
    return {
        path: (left.get(path), right.get(path))
        for path in sorted({*left, *right})
        if left.get(path) != right.get(path)
    }


def cache_directory() -> Path:
    """Returns the folder where lorapack remembers digests, by the XDG convention.

    Raises:
        OutputError: The user has no home, as in some containers.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as problem:
        raise OutputError(
            "this user has no home folder to keep a cache in",
            where="HOME",
            hint="set HOME or XDG_CACHE_HOME to a folder that can be written",
        ) from problem
    return Path(home, "lorapack")


class _Memory:
    """Digests by file identity, kept in one JSON file; losing it only costs time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._known: dict[str, str] = {}
        self._changed = False
        with suppress(InputError, OutputError):
            self._path = cache_directory() / "digests.json"
            raw = read_json_object(self._path)
            self._known = {key: str(value) for key, value in raw.items()}

    def hash(self, path: Path, on_bytes: OnBytes | None) -> str:
        before = identify_file(path)
        remembered = self._known.get(before)
        if remembered is not None:
            if on_bytes is not None:
                on_bytes(path.stat().st_size)
            return remembered
        sha256 = hash_file(path, on_bytes)
        check_identity(path, before)
        # Two writes within one tick of the clock leave the same times behind.
        if time.time_ns() - path.stat().st_ctime_ns > _TICK_NANOSECONDS:
            self._known[before] = sha256
            self._changed = True
        return sha256

    def save(self) -> None:
        if not self._changed or self._path is None:
            return
        newest = dict(list(self._known.items())[-_MAX_REMEMBERED:])
        # One name, so that the next run takes over what a killed one left; one writer at a time.
        aside = self._path.with_suffix(".new")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.with_suffix(".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                aside.write_text(json.dumps(newest), encoding="utf-8")
                aside.replace(self._path)


def identify_file(path: Path) -> str:
    """Returns a text that changes whenever a file is replaced or written to.

    Raises:
        InputError: The file is missing.
    """
    try:
        status = path.stat()
    except OSError as problem:
        raise InputError(
            "the file is missing", where=str(path), hint="download or copy the folder again"
        ) from problem
    fields = (
        os.path.realpath(path), status.st_dev, status.st_ino, status.st_size,
        status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip
    return "|".join(map(str, fields))


def check_identity(path: Path, identity: str) -> None:
    """Refuses a file that is no longer the one that `identify_file` saw.

    Raises:
        InputError: It was written to, replaced or removed.
    """
    if identify_file(path) != identity:
        raise InputError(
            "the file changed while it was read",
            where=str(path),
            hint="wait until the download or copy has ended, then run again",
        )
