"""Sharded safetensors: written once, hashed on the way, on the disk while the next is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from packager.errors import output_error
from packager.manifest import FileEntry
from packager.plan import PlannedShard, PlannedTensor
from packager.sequential import SequentialFile, can_share_blocks
from packager.stream import Chunk
from packager.tensorfile import render_header

METADATA = {"format": "pt"}
"""Source: transformers 5.x, modeling_utils.py: a file without this key is refused."""

_KERNEL_COPY_BYTES = 1 << 20


class SafetensorsSink:
    """Writes planned shards into a folder.

    A chunk is hashed while the one before it is being written.

    Args:
        folder: An existing folder, empty of the shards' names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: Iterator[PlannedShard] = iter(())
        self._planned: tuple[PlannedShard, ...] = ()
        self._file: _ShardFile | None = None
        self._entries: list[FileEntry] = []
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._closing: list[Future[None]] = []
        self._shares: dict[int, bool] = {}

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
            self._file.write(chunk, shared=self._is_shared(chunk))

    def finish(self) -> tuple[FileEntry, ...]:
        """Flushes everything to the disk; returns what was written, relative to the folder.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        with _output_errors(self._folder):
            while len(self._entries) < len(self._planned):
                self._next_file()
            for closing in self._closing:
                closing.result()
        self._closer.shutdown()
        return tuple(self._entries)

    def abort(self) -> None:
        """Closes what is open; the folder's owner removes the files."""
        self._closer.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self) -> None:
        if self._file is not None:
            self._entries.append(self._file.entry())
            self._closing.append(self._closer.submit(self._file.finish))
            self._file = None
        shard = next(self._shards, None)
        if shard is not None:
            self._file = _ShardFile(self._folder, shard)

    def _is_shared(self, chunk: Chunk) -> bool:
        """Tells whether the kernel can share the blocks of an untouched chunk with the base."""
        if chunk.origin is None or len(chunk.data) < _KERNEL_COPY_BYTES:
            return False
        descriptor = chunk.origin.descriptor
        if descriptor not in self._shares:
            self._shares[descriptor] = can_share_blocks(descriptor, self._folder)
        return self._shares[descriptor]


class _ShardFile:
    """One weights file with its hash."""

    def __init__(self, folder: Path, shard: PlannedShard) -> None:
        self._shard = shard
        self._hash = hashlib.sha256()
        header = render_header(
            ((tensor.name, tensor.dtype, tensor.shape) for tensor in shard.tensors),
            METADATA,
            data_start=shard.data_start,
        )
        self._end = len(header) + shard.nbytes
        self._file = SequentialFile(folder / shard.path, self._end)
        self._hash.update(header)
        self._file.append(header)

    def is_full(self) -> bool:
        return self._file.position == self._end

    def write(self, chunk: Chunk, *, shared: bool) -> None:
        self._hash.update(chunk.data)
        done = 0
        if shared and chunk.origin is not None:
            origin = chunk.origin
            done = self._file.append_shared(origin.descriptor, origin.offset, len(chunk.data))
        self._file.append(chunk.data[done:])

    def entry(self) -> FileEntry:
        return FileEntry(self._shard.path, self._end, self._hash.hexdigest())

    def finish(self) -> None:
        self._file.finish()

    def close(self) -> None:
        self._file.close()


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
