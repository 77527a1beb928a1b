"""GGUF files of one or more quantisations, written side by side: once, and hashed on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from packager.errors import output_error
from packager.gguf.block import BlockType
from packager.gguf.layout import GgufFile, render_start
from packager.gguf.value import GgufModel
from packager.manifest import FileEntry
from packager.sequential import SequentialFile


class GgufSink:
    """Writes planned files into a folder.

    Args:
        folder: An existing folder, empty of the files' names.
        model: Whose keys the files carry.
        files: All files; the parts of one quantisation in order.
    """

    def __init__(self, folder: Path, model: GgufModel, files: tuple[GgufFile, ...]) -> None:
        self._folder = folder
        self._files = files
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._quants: list[_QuantWriter] = []
        try:
            with _output_errors(folder):
                for quant in dict.fromkeys(file.quant for file in files):
                    parts = tuple(file for file in files if file.quant == quant)
                    self._quants.append(_QuantWriter(folder, model, parts, self._closer))
        except BaseException:
            self.abort()
            raise

    def add(self, parts: Mapping[BlockType, memoryview]) -> int:
        """Writes the next block of rows, in each of its types, to every quantisation.

        Returns:
            Bytes that the files grew by.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        with _output_errors(self._folder):
            return sum(quant.write(parts) for quant in self._quants)

    def finish(self) -> tuple[FileEntry, ...]:
        """Flushes everything to the disk; returns what was written, relative to the folder.

        Raises:
            OutputError: The disk is full or cannot be written.
        """
        with _output_errors(self._folder):
            entries = {entry.path: entry for quant in self._quants for entry in quant.finish()}
        self._closer.shutdown()
        return tuple(entries[file.path] for file in self._files)

    def abort(self) -> None:
        """Closes what is open; the folder's owner removes the files."""
        self._closer.shutdown()
        for quant in self._quants:
            quant.close()


class _QuantWriter:
    """The files of one quantisation, one open at a time."""

    def __init__(
        self,
        folder: Path,
        model: GgufModel,
        files: tuple[GgufFile, ...],
        closer: ThreadPoolExecutor,
    ) -> None:
        self._folder = folder
        self._model = model
        self._waiting = iter(files)
        self._closer = closer
        self._closing: list[Future[None]] = []
        self._entries: list[FileEntry] = []
        self._part: _PartFile | None = _PartFile(folder, model, next(self._waiting))

    def write(self, parts: Mapping[BlockType, memoryview]) -> int:
        assert self._part is not None
        if self._part.is_full():
            self._close_part()
            self._part = _PartFile(self._folder, self._model, next(self._waiting))
        return self._part.write(parts)

    def finish(self) -> list[FileEntry]:
        self._close_part()
        for closing in self._closing:
            closing.result()
        return self._entries

    def close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _close_part(self) -> None:
        if self._part is not None:
            self._entries.append(self._part.entry())
            self._closing.append(self._closer.submit(self._part.finish))
            self._part = None


class _PartFile:
    """One file with its hash."""

    def __init__(self, folder: Path, model: GgufModel, file: GgufFile) -> None:
        self._plan = file
        self._tensors = iter(file.tensors)
        self._current = next(self._tensors, None)
        self._hash = hashlib.sha256()
        start = render_start(model, file)
        assert len(start) == file.data_start
        self._file = SequentialFile(folder / file.path, file.size)
        try:
            self._append(start)
        except BaseException:
            self._file.close()
            raise

    def is_full(self) -> bool:
        return self._current is None

    def write(self, parts: Mapping[BlockType, memoryview]) -> int:
        assert self._current is not None
        before = self._file.position
        self._append(parts[self._current.tensor.type])
        end = self._current.offset + self._current.tensor.nbytes
        assert self._file.position <= end
        if self._file.position == end:
            self._current = next(self._tensors, None)
            self._append(bytes((self._current.offset if self._current else self._plan.size) - end))
        return self._file.position - before

    def entry(self) -> FileEntry:
        assert self._file.position == self._plan.size
        return FileEntry(self._plan.path, self._plan.size, self._hash.hexdigest())

    def finish(self) -> None:
        self._file.finish()

    def close(self) -> None:
        self._file.close()

    def _append(self, data: memoryview | bytes) -> None:
        self._hash.update(data)
        self._file.append(data)


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Turns the system's write errors into ours."""
    try:
        yield
    except OSError as problem:
        raise output_error(problem, folder) from problem
