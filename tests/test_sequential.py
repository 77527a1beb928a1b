"""Writing from start to end past the page cache, and reading what the disk has."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.sequential import (
    BLOCK_BYTES,
    SequentialFile,
    can_share_blocks,
    open_direct,
    read_past_cache,
)

BUFFER_BYTES = 8 << 20


def read_all(path: Path) -> bytes:
    return b"".join(bytes(part) for part in read_past_cache(path))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BUFFER_BYTES, 2 * BUFFER_BYTES + BLOCK_BYTES + 7]
)
def test_every_byte_arrives(tmp_path: Path, size: int, direct: bool) -> None:
    data = os.urandom(size)
    file = SequentialFile(tmp_path / "f", size, direct=direct)
    for start in range(0, size, 3_000_001):
        file.append(data[start : start + 3_000_001])
    assert file.position == size
    file.finish()
    assert (tmp_path / "f").read_bytes() == data
    assert read_all(tmp_path / "f") == data


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.booleans(), st.integers(0, 3 * BLOCK_BYTES)), min_size=1, max_size=12
    )
)
def test_own_and_shared_bytes_mix(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int]]
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    source = os.urandom(3 * BLOCK_BYTES)
    (folder / "source").write_bytes(source)
    wanted = b"".join(source[:count] for _, count in pieces)
    descriptor = os.open(folder / "source", os.O_RDONLY)
    try:
        file = SequentialFile(folder / "out", len(wanted))
        for shared, count in pieces:
            done = file.append_shared(descriptor, 0, count) if shared else 0
            file.append(source[done:count])
        file.finish()
    finally:
        os.close(descriptor)
    assert (folder / "out").read_bytes() == wanted


def test_caller_may_reuse_its_buffer(tmp_path: Path) -> None:
    buffer = bytearray(b"a" * 1000)
    file = SequentialFile(tmp_path / "f", 2000)
    file.append(memoryview(buffer))
    buffer[:] = b"b" * 1000
    file.append(memoryview(buffer))
    file.finish()
    assert (tmp_path / "f").read_bytes() == b"a" * 1000 + b"b" * 1000


def test_file_system_without_direct_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some open such a file and refuse only the write: the bytes take the other way."""
    file = SequentialFile(tmp_path / "f", 3 * BUFFER_BYTES)
    refused = file._direct
    real = os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if descriptor == refused:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, data, position)

    assert refused >= 0
    monkeypatch.setattr(os, "pwrite", pwrite)
    data = os.urandom(3 * BUFFER_BYTES)
    file.append(data)
    file.finish()
    assert (tmp_path / "f").read_bytes() == data


def test_short_direct_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SequentialFile(tmp_path / "f", BUFFER_BYTES)
    direct, real = file._direct, os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if descriptor == direct:
            data = data[: 2 * BLOCK_BYTES]
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    data = os.urandom(BUFFER_BYTES)
    file.append(data)
    file.finish()
    assert (tmp_path / "f").read_bytes() == data


def test_failed_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SequentialFile(tmp_path / "f", 10)

    def pwrite(_descriptor: int, _data: memoryview, _position: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    file.append(b"0123456789")
    with pytest.raises(OSError, match="No space left"):
        file.finish()


def test_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        SequentialFile(tmp_path / "f", 10)
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_reading_falls_back_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10_000)
    direct = open_direct(tmp_path / "f", os.O_RDONLY)
    assert direct >= 0
    os.close(direct)
    real = os.preadv
    refused: set[int] = set()

    def preadv(descriptor: int, buffers: list[memoryview], position: int) -> int:
        if not refused:
            refused.add(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", preadv)
    assert read_all(tmp_path / "f") == b"x" * 10_000


def test_sharing_is_asked_of_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * BLOCK_BYTES)
    with (tmp_path / "source").open("rb") as source:
        answer = can_share_blocks(source.fileno(), tmp_path)
        file = SequentialFile(tmp_path / "out", BLOCK_BYTES)
        file.append_shared(source.fileno(), 0, BLOCK_BYTES)
        file.finish()
    assert isinstance(answer, bool)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out", "source"]
