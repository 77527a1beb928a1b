"""Writing into Ollama's store on the disk: blobs first, each whole or not at all; manifests last.

Blobs are copies, shared by the file system where it can: a hard link would save as much, but then
whoever edits the bundle's file in place edits the store's as well. What a killed run leaves behind
has a name of its own, is removed by the next run, and by Ollama's own clean-up after an hour.

Source: ollama v0.33.0-rc2, manifest/paths.go (blobs/sha256-<hex>), manifest/layer.go (NewLayer:
mode 0644, and the time is touched so that a clean-up of unused blobs leaves it),
server/images.go (PruneLayers removes other names), manifest/manifest.go (Manifests reads only
what lies four folders deep).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from packager.digest import OnBytes, hash_stored_file
from packager.errors import OutputError
from packager.progress import Progress
from packager.publish.ollama_name import ModelName
from packager.publish.store_image import Blob
from packager.publish.store_state import check_store, manifest_path, store_error
from packager.sequential import SequentialFile, can_share_blocks

_ASIDE = ".lorapack"
_MODE = 0o644
_PIECE_BYTES = 64 << 20
_CHUNK_BYTES = 4 << 20


class StoreFolder:
    """A store that is being written to; one lorapack at a time, beside a running Ollama or not.

    Args:
        root: What `OLLAMA_MODELS` names; made if missing.
        progress: Told when another run has to be waited for.

    Raises:
        OllamaError: The folder is something else than a store.
        OutputError: It cannot be written.
    """

    def __init__(self, root: Path, progress: Progress) -> None:
        self._root = root
        self._progress = progress
        self._blobs = root / "blobs"
        self._manifests = root / "manifests"
        self._lock = -1

    def __enter__(self) -> StoreFolder:
        check_store(self._root)
        try:
            for folder in (self._blobs, self._manifests):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY)
            self._wait_for_others()
            self._remove_left_over()
        except BaseException as problem:
            self._close()
            if isinstance(problem, OSError):
                raise store_error(problem, self._root) from problem
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add_blob(self, blob: Blob, on_bytes: OnBytes) -> None:
        """Puts a blob into the store, over whatever has its name, once it has been read back.

        Raises:
            InputError: Its source cannot be read.
            OutputError: It cannot be written, or is not on the disk what it was.
        """

        def write(aside: Path) -> None:
            if blob.source is None:
                assert blob.data is not None
                _write_data(aside, blob.data)
                on_bytes(blob.size)
            else:
                _copy(blob.source, aside, blob.size, on_bytes)
            _check_written(aside, blob)

        self._appear(self._blob_path(blob), self._blobs, write)

    def touch(self, blob: Blob) -> None:
        """Says that a blob is in use, as Ollama does; somebody else's file stays as it is."""
        with suppress(OSError):
            os.utime(self._blob_path(blob))

    def add_manifest(self, name: ModelName, data: bytes) -> None:
        """Makes a model appear, once all its blobs are there.

        Raises:
            OutputError: It cannot be written.
        """
        path = manifest_path(self._root, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise store_error(problem, path) from problem
        self._appear(path, self._manifests, lambda aside: _write_data(aside, data))

    def _blob_path(self, blob: Blob) -> Path:
        return self._blobs / f"sha256-{blob.sha256}"

    def _appear(self, path: Path, folder: Path, write: Callable[[Path], None]) -> None:
        """Writes a file aside, in `folder`, and gives it its name when it has reached the disk."""
        aside = folder / f"{path.name}{_ASIDE}"
        try:
            write(aside)
            aside.chmod(_MODE)
            aside.replace(path)
            _flush(path.parent)
        except BaseException as problem:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            if isinstance(problem, OSError):
                raise store_error(problem, path) from problem
            raise

    def _wait_for_others(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._progress.say(f"another lorapack writes into {self._root}: waiting for it")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _remove_left_over(self) -> None:
        for folder in (self._blobs, self._manifests):
            for path in folder.glob(f"*{_ASIDE}"):
                path.unlink()

    def _close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _copy(source: Path, aside: Path, size: int, on_bytes: OnBytes) -> None:
    """Copies a file: the kernel does it, and shares the blocks, where both ends allow that."""
    with source.open("rb", buffering=0) as file:
        shares = can_share_blocks(file.fileno(), aside.parent)
        target = SequentialFile(aside, 0 if shares else size)
        try:
            while target.position < size:
                start = target.position
                wanted = min(_PIECE_BYTES, size - start)
                if not target.append_shared(file.fileno(), start, wanted):
                    target.append(_read(file.fileno(), start, wanted))
                on_bytes(target.position - start)
            target.finish()
        finally:
            target.close()


def _check_written(aside: Path, blob: Blob) -> None:
    found = hash_stored_file(aside)
    if found != blob.sha256:
        raise OutputError(
            "a blob on the disk is not what was copied there",
            where=str(blob.source or aside),
            expected=blob.digest,
            found=f"sha256:{found}",
            hint="do not change the bundle meanwhile; check the disk, then run again",
        )


def _read(descriptor: int, start: int, wanted: int) -> bytes:
    data = os.pread(descriptor, min(wanted, _CHUNK_BYTES), start)
    if not data:
        raise OSError(errno.EIO, "the source became shorter")
    return data


def _write_data(aside: Path, data: bytes) -> None:
    with aside.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as problem:
        # Some network file systems cannot flush a folder; it is as safe there as it can be.
        if problem.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
