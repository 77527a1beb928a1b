"""Sharded safetensors: written once, hashed on the way, flushed while the next chunk is made."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from packager.errors import output_error
from packager.manifest import FileEntry
from packager.plan import PlannedShard, PlannedTensor
from packager.stream import Chunk
from packager.tensorfile import render_header

METADATA = {"format": "pt"}
"""Source: transformers 5.x, modeling_utils.py: a file without this key is refused."""

_FLUSH_BYTES = 64 << 20
_KERNEL_COPY_BYTES = 1 << 20
_CANNOT_RESERVE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}


class SafetensorsSink:
    """Writes planned shards into a folder.

    A chunk is hashed while it is being written, and the disk is kept busy by early flushes.

    Args:
        folder: An existing folder, empty of the shards' names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: Iterator[PlannedShard] = iter(())
        self._planned: tuple[PlannedShard, ...] = ()
        self._file: _ShardFile | None = None
        self._entries: list[FileEntry] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushes: list[Future[None]] = []

    def begin(self, shards: tuple[PlannedShard, ...]) -> None:
        """Takes the shards to come, in order."""
        self._planned = shards
        self._shards = iter(shards)

    def add(self, chunk: Chunk) -> None:
        """Writes a chunk; chunks come in the order of the shards' tensors.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        with _output_errors(self._folder):
            while self._file is None or self._file.is_full():
                self._next_file()
            written = self._writer.submit(self._file.write, chunk)
            self._file.hash(chunk)
            if written.result() >= _FLUSH_BYTES:
                self._flushes.append(self._flusher.submit(self._file.flush))

    def finish(self) -> tuple[FileEntry, ...]:
        """Flushes everything to the disk; returns what was written, relative to the folder.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        with _output_errors(self._folder):
            while len(self._entries) < len(self._planned):
                self._next_file()
            for flush in self._flushes:
                flush.result()
        self._shut_down()
        return tuple(self._entries)

    def abort(self) -> None:
        """Closes what is open; the folder's owner removes the files."""
        self._shut_down()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _shut_down(self) -> None:
        self._writer.shutdown()
        self._flusher.shutdown()

    def _next_file(self) -> None:
        if self._file is not None:
            self._entries.append(self._file.entry())
            self._flushes.append(self._flusher.submit(self._file.conclude))
            self._file = None
        shard = next(self._shards, None)
        if shard is not None:
            self._file = _ShardFile(self._folder, shard)


class _ShardFile:
    """One open weights file."""

    def __init__(self, folder: Path, shard: PlannedShard) -> None:
        self._shard = shard
        self._descriptor = os.open(folder / shard.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._hash = hashlib.sha256()
        header = render_header(
            ((tensor.name, tensor.dtype, tensor.shape) for tensor in shard.tensors),
            METADATA,
            data_start=shard.data_start,
        )
        self._end = len(header) + shard.nbytes
        _reserve(self._descriptor, self._end)
        self._position = 0
        self._flushed = 0
        self._kernel_copies = True
        self._write(memoryview(header))
        self._hash.update(header)

    def is_full(self) -> bool:
        return self._position == self._end

    def write(self, chunk: Chunk) -> int:
        """Writes a chunk; returns how many bytes wait to be flushed."""
        copied = self._copy_in_kernel(chunk)
        if copied < len(chunk.data):
            self._write(chunk.data[copied:])
        return self._position - self._flushed

    def hash(self, chunk: Chunk) -> None:
        self._hash.update(chunk.data)

    def flush(self) -> None:
        """Writes to the disk early, so that the disk works while the cores do."""
        self._flushed = self._position
        os.fdatasync(self._descriptor)

    def entry(self) -> FileEntry:
        return FileEntry(self._shard.path, self._end, self._hash.hexdigest())

    def conclude(self) -> None:
        """Brings everything to the disk and closes the file."""
        try:
            os.fsync(self._descriptor)
        finally:
            self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, view: memoryview) -> None:
        while view:
            count = os.pwrite(self._descriptor, view, self._position)
            self._position += count
            view = view[count:]

    def _copy_in_kernel(self, chunk: Chunk) -> int:
        """Lets the kernel copy, or share, untouched bytes; returns how many it did."""
        if chunk.origin is None or not self._kernel_copies or len(chunk.data) < _KERNEL_COPY_BYTES:
            return 0
        done = 0
        while done < len(chunk.data):
            try:
                count = os.copy_file_range(
                    chunk.origin.descriptor, self._descriptor, len(chunk.data) - done,
                    chunk.origin.offset + done, self._position,
                )  # fmt: skip
            except OSError as problem:
                if problem.errno not in _CANNOT_COPY:
                    raise
                count = 0
            if count == 0:
                self._kernel_copies = False
                return done
            done += count
            self._position += count
        return done


def _reserve(descriptor: int, size: int) -> None:
    """Reserves the blocks of a file at once, where the file system can.

    A full disk is noticed before the first byte, and writing into reserved blocks takes the kernel
    a fraction of the time of finding each when it is written. `os.posix_fallocate` is not used:
    where the file system cannot reserve, the C library writes zeros instead.

    Source: fallocate(2), Linux 2.6.23; posix_fallocate(3), glibc 2.36, Caveats.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is None or not size:
        return
    result = function(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size))
    number = ctypes.get_errno()
    if result != 0 and number not in _CANNOT_RESERVE:
        raise OSError(number, os.strerror(number))


class _output_errors:  # noqa: N801 - reads as a statement where it is used
    """Turns the system's write errors into ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, OSError):
            raise output_error(problem, self._folder) from problem


def render_index(shards: tuple[PlannedShard, ...]) -> str:
    """Returns `model.safetensors.index.json`; `total_size` counts bytes of tensors.

    Source: transformers 5.x, modeling_utils.py, save_pretrained.
    """
    weight_map = {tensor.name: shard.path for shard in shards for tensor in shard.tensors}
    metadata = {
        "total_parameters": sum(_elements(t) for shard in shards for t in shard.tensors),
        "total_size": sum(shard.nbytes for shard in shards),
    }
    document = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _elements(tensor: PlannedTensor) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count
