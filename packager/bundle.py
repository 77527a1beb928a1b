"""The bundle folder: written aside, locked against a second writer, shown by one rename."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from packager.errors import BundleError, InputError, OutputError, output_error
from packager.manifest import MANIFEST_NAME, Manifest, parse_manifest
from packager.untrusted import check_folder_name, read_bytes

_MAX_MANIFEST_BYTES = 64 << 20
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


class Staging:
    """A folder beside `out` that becomes `out` when `commit` is called.

    The folder has a fixed name and is locked while it is in use, so that what a killed run left
    behind is found and removed by the next one, and a second run on the same `out` is refused.

    Args:
        out: The folder to appear. It must not exist.

    Raises:
        OutputError: `out` exists, its parent cannot be written, or another run is at work.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.root = self.out.with_name(f".{self.out.name}.lorapack")
        self._descriptor = -1
        self._reserve = -1
        self._made: list[Path] = []

    def __enter__(self) -> Staging:
        check_absent(self.out)
        check_folder_name(self.out)
        try:
            # Given back for cleaning up, which needs one where no more files may be opened.
            self._reserve = os.open(os.devnull, os.O_RDONLY)
            self._make_parents()
            self._lock()
            check_absent(self.out)
            _empty_folder(self.root)
        except BaseException as problem:
            self._close_reserve()
            with suppress(OSError, OutputError):
                # What came between can be an interrupt: the folder is made, but not locked.
                self._lock()
            self._abandon()
            if isinstance(problem, OSError):
                where = Path(problem.filename or self.out.parent)
                raise output_error(problem, where) from problem
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._abandon()

    def commit(self) -> None:
        """Makes the folder appear as `out`, after everything in it has reached the disk.

        Raises:
            OutputError: `out` came into being meanwhile, or the disk fails.
        """
        try:
            for folder, _, names in os.walk(self.root):
                for name in names:
                    _flush(Path(folder, name))
                _flush(Path(folder))
            _rename_new(self.root, self.out)
            _flush(self.out.parent)
        except OSError as problem:
            if problem.errno in (errno.EEXIST, errno.ENOTEMPTY):
                check_absent(self.out)
            raise output_error(problem, self.out) from problem
        self._close_reserve()
        self._unlock()
        self._made = []

    def _make_parents(self) -> None:
        parents = [self.out.parent, *self.out.parent.parents]
        self._made = [parent for parent in parents if not os.path.lexists(parent)]
        self.out.parent.mkdir(parents=True, exist_ok=True)

    def _lock(self) -> None:
        if self._descriptor >= 0:
            return
        self.root.mkdir(exist_ok=True)
        # A link or a folder of somebody else's, in a place like /tmp, would be emptied.
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if not _is_ours(self.root, descriptor):
                raise OutputError(
                    "another lorapack is writing this output",
                    where=str(self.out),
                    expected=f"nobody at work in {self.root.name}",
                    hint="wait for it, or give another --out",
                )
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _abandon(self) -> None:
        """Removes what was made, unless it was committed or is another run's."""
        self._close_reserve()
        with suppress(OSError):
            if self._descriptor >= 0:
                _empty_folder(self.root)
                self.root.rmdir()
        self._unlock()
        with suppress(OSError):
            for parent in self._made:
                parent.rmdir()

    def _close_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _unlock(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_absent(out: Path) -> None:
    """Refuses an output that exists.

    Raises:
        OutputError: It exists.
    """
    if os.path.lexists(out):
        raise OutputError(
            "the output exists already",
            where=str(out),
            expected="a folder that does not exist yet",
            hint="give another --out, or remove that folder",
        )


def check_free_space(out: Path, needed_bytes: int) -> None:
    """Refuses to begin on a disk that cannot hold the output.

    Raises:
        OutputError: With bytes needed and free; or the disk cannot be asked.
    """
    place = next(parent for parent in out.absolute().parents if os.path.lexists(parent))
    try:
        free = shutil.disk_usage(place).free
    except OSError as problem:
        raise output_error(problem, place) from problem
    if free < needed_bytes:
        raise OutputError(
            "the disk has no room for the output",
            where=str(place),
            expected=f"{needed_bytes:,} bytes free",
            found=f"{free:,} bytes",
            hint="free some space, or give an --out on another disk",
        )


def read_manifest(bundle: Path) -> Manifest:
    """Reads the manifest of a bundle.

    Raises:
        BundleError: There is none, or it is damaged.
    """
    path = bundle / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(
            "this is not a bundle",
            where=str(bundle),
            expected=MANIFEST_NAME,
            hint="give the folder that lorapack release wrote (its --out)",
        )
    return parse_manifest(read_bytes(path, max_bytes=_MAX_MANIFEST_BYTES), where=str(path))


def write_text(path: Path, text: str) -> None:
    """Writes a new UTF-8 file with `\\n` line ends, making its folder.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as problem:
        raise output_error(problem, path) from problem


def make_folder(path: Path) -> None:
    """Makes a new folder and those above it.

    Raises:
        OutputError: It cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except OSError as problem:
        raise output_error(problem, path) from problem


def copy_new(source: Path, path: Path) -> None:
    """Copies a file byte for byte to a new place, readable by everybody who may read ours.

    Raises:
        InputError: It cannot be read.
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_source(source) as incoming, path.open("xb") as outgoing:
            shutil.copyfileobj(incoming, outgoing, 4 << 20)
    except OSError as problem:
        raise output_error(problem, path) from problem


def _is_ours(folder: Path, descriptor: int) -> bool:
    """Locks a folder; tells whether it is the one that now has this name, and belongs to us."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status, there = os.fstat(descriptor), folder.stat()
    except (BlockingIOError, FileNotFoundError):
        return False
    return os.path.samestat(status, there) and status.st_uid == os.geteuid()


def _empty_folder(folder: Path) -> None:
    """Removes what is in a folder, with one open file at a time; links are not followed."""
    for place, folders, names in os.walk(folder, topdown=False):
        for name in [*folders, *names]:
            path = Path(place, name)
            path.rmdir() if name in folders and not path.is_symlink() else path.unlink()


def _open_source(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions",
        ) from problem


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        # Some network file systems cannot flush a folder; it is as safe there as it can be.
        if problem.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _rename_new(source: Path, target: Path) -> None:
    """Renames, refusing a target that exists, even an empty folder.

    Source: renameat2(2), Linux 3.15; where the C library lacks it, rename(2) still refuses a
    folder that is not empty.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        source.rename(target)
        return
    result = function(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(target))
    source.rename(target)
