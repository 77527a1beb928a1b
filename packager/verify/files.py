"""Level `files`: every byte of a bundle against its manifest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packager.digest import OnBytes, hash_stored_file
from packager.errors import InputError
from packager.manifest import MANIFEST_NAME, FileEntry
from packager.verify.proof import FilesCheck

REPORT_FOLDER = "report"
_READERS = 4
_OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Failures that tell nothing of the file."""


def check_files(
    bundle: Path, entries: Iterable[FileEntry], on_bytes: OnBytes | None = None
) -> FilesCheck:
    """Hashes every file of a bundle and looks for files that the manifest does not know.

    Nothing that was hashed before is trusted: every byte is read again from the disk, a few
    files at a time: reading one waits for the disk while another is hashed.

    Args:
        bundle: The bundle's folder, or a staging folder.
        entries: What should be there.
        on_bytes: Told of bytes hashed.

    Raises:
        InputError: The machine is at a limit, such as that on open files.
    """
    wanted = {entry.path: entry for entry in entries}
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(lambda e: _check_file(bundle, e, on_bytes), wanted.values()))
    problems = [problem for problem in found if problem]
    problems += [f"{path} is not in the manifest" for path in list_files(bundle) - wanted.keys()]
    return FilesCheck(
        count=len(wanted),
        total_bytes=sum(entry.size for entry in wanted.values()),
        problems=tuple(sorted(problems)),
    )


def list_files(bundle: Path) -> set[str]:
    """Returns the relative paths of everything in a bundle but manifest and report."""
    paths = set()
    for folder, directories, names in os.walk(bundle):
        links = [name for name in directories if Path(folder, name).is_symlink()]
        paths |= {Path(folder, name).relative_to(bundle).as_posix() for name in names + links}
    return {path for path in paths if path != MANIFEST_NAME and path.split("/")[0] != REPORT_FOLDER}


def _check_file(bundle: Path, entry: FileEntry, on_bytes: OnBytes | None) -> str:
    path = bundle / entry.path
    if path.is_symlink() or not path.is_file():
        return f"{entry.path} is missing" if not path.is_symlink() else f"{entry.path} is a link"
    size = path.stat().st_size
    if size != entry.size:
        return f"{entry.path} has {size} bytes, not {entry.size}"
    try:
        sha256 = hash_stored_file(path, on_bytes)
    except InputError as problem:
        cause = problem.__cause__
        if isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE:
            raise
        return f"{entry.path} cannot be read: {problem.found}"
    if sha256 == entry.sha256:
        return ""
    return f"{entry.path} has sha256 {sha256[:12]}…, not {entry.sha256[:12]}…"
