"""Files read or written from start to end, past the page cache where the system allows it.

What is written once and not read again soon only pushes other things out of the page cache, and
filling that cache costs more processor time than hashing does. Whole blocks therefore go to the
disk directly (O_DIRECT) from two aligned buffers, in a thread of their own; what does not fill a
block, and everything on file systems that know no direct writing, goes through the cache.

Source: open(2), Linux 6.x, O_DIRECT: address, offset and length are multiples of the block size;
macOS has no such flag.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 4096
"""A multiple of the logical block size of every common disk."""

_BUFFER_BYTES = 8 << 20
_FLUSH_BYTES = 64 << 20
_CANNOT_RESERVE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
_FICLONE = 0x40049409
_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}


class SequentialFile:
    """One open file; every method may raise OSError.

    Args:
        path: A file that does not exist yet.
        size: How long it will be, in bytes; the blocks are reserved at once.
        direct: Whether to write past the page cache, where the system allows it.
    """

    def __init__(self, path: Path, size: int, *, direct: bool = True) -> None:
        self._cached = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._direct = -1
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        try:
            _reserve(self._cached, size)
            if direct:
                self._direct = open_direct(path, os.O_WRONLY)
        except BaseException:
            self.close()
            raise
        self._buffers = [mmap.mmap(-1, _BUFFER_BYTES) for _ in range(2)]
        self._waiting: Future[None] | None = None
        self._unflushed = 0
        self._start = 0
        self._filled = 0

    @property
    def position(self) -> int:
        """Bytes handed over so far."""
        return self._start + self._filled

    def append(self, data: memoryview | bytes) -> None:
        """Takes the next bytes of the file; they may be changed as soon as this returns."""
        view = memoryview(data)
        while view:
            # A buffer lies in memory as its part of the file lies in its block.
            first = self._start % BLOCK_BYTES + self._filled
            count = min(len(view), _BUFFER_BYTES - first)
            self._buffers[0][first : first + count] = view[:count]
            self._filled += count
            view = view[count:]
            if first + count == _BUFFER_BYTES:
                self._send()

    def append_shared(self, descriptor: int, offset: int, count: int) -> int:
        """Lets the kernel copy, or share, bytes of another file.

        Returns:
            How many it did; 0 where it cannot.
        """
        self._send()
        self._wait()
        done = 0
        while done < count:
            try:
                copied = os.copy_file_range(
                    descriptor, self._cached, count - done, offset + done, self._start
                )
            except OSError as problem:
                if problem.errno not in _CANNOT_COPY:
                    raise
                copied = 0
            if copied == 0:
                break
            done += copied
            self._start += copied
        return done

    def finish(self) -> None:
        """Brings everything to the disk and closes the file."""
        try:
            self._send()
            self._wait()
            os.fsync(self._cached)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the file as it is."""
        self._writer.shutdown()
        for descriptor in (self._direct, self._cached):
            if descriptor >= 0:
                os.close(descriptor)
        self._direct = self._cached = -1

    def _send(self) -> None:
        """Gives the filled buffer to the writing thread and takes the other one."""
        self._wait()
        if self._filled:
            self._waiting = self._writer.submit(
                self._write, self._buffers[0], self._start, self._filled
            )
            self._buffers.reverse()
        self._start += self._filled
        self._filled = 0

    def _wait(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.result()

    def _write(self, buffer: mmap.mmap, start: int, count: int) -> None:
        first = start % BLOCK_BYTES
        with memoryview(buffer)[first : first + count] as view:
            if self._direct < 0:
                self._write_cached(view, start)
                return
            head = min(-start % BLOCK_BYTES, count)
            whole = (count - head) // BLOCK_BYTES * BLOCK_BYTES
            self._write_cached(view[:head], start)
            self._write_direct(view[head : head + whole], start + head)
            self._write_cached(view[head + whole :], start + head + whole)

    def _write_direct(self, view: memoryview, position: int) -> None:
        while view:
            try:
                count = os.pwrite(self._direct, view, position)
            except OSError as problem:
                if problem.errno not in _NOT_DIRECT:
                    raise
                os.close(self._direct)
                self._direct = -1
                count = 0
            # A short write may end within a block; the rest then takes the other way.
            if self._direct < 0 or count % BLOCK_BYTES:
                self._write_cached(view[count:], position + count)
                return
            view, position = view[count:], position + count

    def _write_cached(self, view: memoryview, position: int) -> None:
        while view:
            count = os.pwrite(self._cached, view, position)
            view, position = view[count:], position + count
            self._unflushed += count
        if self._unflushed >= _FLUSH_BYTES:
            # Early, so that the disk works while the cores do.
            self._unflushed = 0
            os.fdatasync(self._cached)


def read_past_cache(path: Path) -> Iterator[memoryview]:
    """Yields a file's bytes in order as the disk has them, whatever the page cache holds.

    Yields:
        Views that are valid until the next one is asked for.

    Raises:
        OSError: The file cannot be read.
    """
    buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
    descriptor = os.open(path, os.O_RDONLY)
    direct = open_direct(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        position = 0
        while position < size:
            use_direct = direct >= 0 and position % BLOCK_BYTES == 0
            try:
                count = os.preadv(direct if use_direct else descriptor, [buffer], position)
            except OSError as problem:
                if not use_direct or problem.errno not in _NOT_DIRECT:
                    raise
                os.close(direct)
                direct = -1
                continue
            if count == 0:
                return
            yield buffer[:count]
            position += count
    finally:
        os.close(descriptor)
        if direct >= 0:
            os.close(direct)


def open_direct(path: Path, flags: int) -> int:
    """Opens an existing file past the page cache; returns −1 where the system cannot."""
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        return -1
    with suppress(OSError):
        return os.open(path, flags | flag)
    return -1


def can_share_blocks(descriptor: int, folder: Path) -> bool:
    """Tells whether the file system lets a new file in `folder` share blocks with an open file.

    Source: ioctl_ficlone(2), Linux 4.5: clones share all blocks, on btrfs, XFS, bcachefs and a few
    more; elsewhere it fails at once.
    """
    if sys.platform != "linux":
        return False
    with tempfile.TemporaryFile(dir=folder) as scratch:
        try:
            fcntl.ioctl(scratch.fileno(), _FICLONE, descriptor)
        except OSError:
            return False
    return True


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
