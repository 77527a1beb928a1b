"""The start of a GGUF file, before the data: writer and parser.

Source: llama.cpp 0c1e57098, ggml/include/gguf.h: magic and version, numbers of tensors and keys,
the keys, the tensors with their dimensions reversed, and zeros up to the alignment. Strings and
arrays carry their length in 64 bits. All little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from packager.errors import InputError
from packager.gguf.block import BLOCKS, BlockType, data_bytes, inner_shape
from packager.gguf.value import GgufKey, KeyType, Scalar

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32

_FORMATS: dict[KeyType, str] = {
    "uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i",
    "float32": "f", "bool": "?", "uint64": "Q", "int64": "q", "float64": "d",
}  # fmt: skip
_NUMBERS: dict[KeyType, int] = {
    "uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6,
    "bool": 7, "string": 8, "uint64": 10, "int64": 11, "float64": 12,
}  # fmt: skip
_ARRAY = 9
_BY_NUMBER = {number: name for name, number in _NUMBERS.items()}
_TYPE_NAMES: dict[int, BlockType] = {block.number: name for name, block in BLOCKS.items()}
_MAX_ENTRIES = 1 << 17
_MAX_DIMENSIONS = 4
_HINT = "the file may be cut short: copy or download it again"


@dataclass(frozen=True)
class DataTensor:
    """Where the data of a tensor lies.

    Attributes:
        name: Of the tensor.
        shape: Row-major.
        type: Of its values.
        offset: From the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data, without padding."""
        return data_bytes(self.type, self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """A parsed start of a file.

    Attributes:
        keys: In the order of the file.
        tensors: Likewise.
        data_start: First byte of the data.
    """

    keys: tuple[GgufKey, ...]
    tensors: tuple[DataTensor, ...]
    data_start: int


def padded(count: int) -> int:
    """Rounds a number of bytes up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def render_header(
    model_keys: tuple[GgufKey, ...],
    file_keys: Sequence[GgufKey],
    tensors: Sequence[tuple[str, BlockType, tuple[int, ...]]],
) -> bytes:
    """Writes the start of a file.

    Args:
        model_keys: Keys that files of one model share.
        file_keys: Keys of this file, behind them.
        tensors: Name, type and row-major shape, in the order of the data.

    Returns:
        The bytes, padded; the data follows.
    """
    start = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(model_keys) + len(file_keys))
    raw = b"".join((start, _render_keys(model_keys), _render_keys(tuple(file_keys)),
                    _render_tensors(tensors)))  # fmt: skip
    return raw.ljust(padded(len(raw)), b"\0")


def parse_header(data: bytes | memoryview, *, where: str, size: int) -> GgufHeader:
    """Parses the start of a file and checks it against the file's size.

    Args:
        data: The file, or at least its start.
        where: Its name, for errors.
        size: Of the whole file in bytes.

    Raises:
        InputError: Not GGUF of a known version, cut short, or it names what the file lacks.
    """
    reader = _Reader(memoryview(data), where)
    if bytes(reader.take(4)) != MAGIC or reader.number("uint32") not in {2, VERSION}:
        raise reader.damaged("GGUF of version 2 or 3", repr(bytes(data[:8])))
    tensor_count, key_count = reader.count(_MAX_ENTRIES), reader.count(_MAX_ENTRIES)
    keys = tuple(_parse_key(reader) for _ in range(key_count))
    found = [_parse_tensor(reader) for _ in range(tensor_count)]
    alignment = next((key.value for key in keys if key.name == "general.alignment"), ALIGNMENT)
    if alignment != ALIGNMENT:
        raise reader.damaged(f"an alignment of {ALIGNMENT}", repr(alignment)[:40])
    start = padded(reader.position)
    tensors = tuple(DataTensor(name, shape, kind, start + at) for name, shape, kind, at in found)
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > size:
            raise reader.damaged(f"{tensor.offset + tensor.nbytes} bytes", f"{size}")
    return GgufHeader(keys, tensors, start)


@lru_cache(maxsize=8)
def _render_keys(keys: tuple[GgufKey, ...]) -> bytes:
    return b"".join(_render_key(key) for key in keys)


def _render_key(key: GgufKey) -> bytes:
    name = _render_string(key.name)
    number = _NUMBERS[key.type]
    if not isinstance(key.value, tuple):
        return name + struct.pack("<I", number) + _render_values(key.type, (key.value,))
    head = struct.pack("<IIQ", _ARRAY, number, len(key.value))
    return name + head + _render_values(key.type, key.value)


def _render_values(kind: KeyType, values: Sequence[Scalar]) -> bytes:
    if kind == "string":
        return b"".join(_render_string(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)


def _render_string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _render_tensors(tensors: Iterable[tuple[str, BlockType, tuple[int, ...]]]) -> bytes:
    parts: list[bytes] = []
    offset = 0
    for name, kind, shape in tensors:
        sizes = inner_shape(shape)[::-1]
        dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        place = struct.pack("<IQ", BLOCKS[kind].number, offset)
        parts.append(_render_string(name) + dimensions + place)
        offset += padded(data_bytes(kind, shape))
    return b"".join(parts)


def _parse_key(reader: _Reader) -> GgufKey:
    name = reader.string()
    kind = reader.number("uint32")
    if kind != _ARRAY:
        type_name = reader.key_type(kind)
        return GgufKey(name, type_name, reader.values(type_name, 1)[0])
    type_name = reader.key_type(reader.number("uint32"))
    return GgufKey(name, type_name, reader.values(type_name, reader.number("uint64")))


def _parse_tensor(reader: _Reader) -> tuple[str, tuple[int, ...], BlockType, int]:
    name = reader.string()
    dimensions = reader.number("uint32")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise reader.damaged(f"1 to {_MAX_DIMENSIONS} dimensions", f"{dimensions} of {name!r:.80}")
    sizes = tuple(reader.number("uint64") for _ in range(dimensions))
    kind, offset = reader.number("uint32"), reader.number("uint64")
    if kind not in _TYPE_NAMES:
        raise reader.damaged("a known type", f"type {kind} of {name!r:.80}")
    if sizes[0] % BLOCKS[_TYPE_NAMES[kind]].values or math.prod(sizes) >= 1 << 62:
        raise reader.damaged("rows of whole blocks", f"{sizes!r:.80} of {name!r:.80}")
    return name, sizes[::-1], _TYPE_NAMES[kind], offset


class _Reader:
    """Takes values from the front of a file, never more than are there."""

    def __init__(self, data: memoryview, where: str) -> None:
        self._data = data
        self._where = where
        self.position = 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self._data):
            raise self.damaged(f"{count} more bytes of header", f"{len(self._data)} bytes in all")
        part = self._data[self.position : end]
        self.position = end
        return part

    def number(self, kind: KeyType) -> int:
        value = self.values(kind, 1)[0]
        assert isinstance(value, int)
        return value

    def count(self, limit: int) -> int:
        value = self.number("uint64")
        if value > limit:
            raise self.damaged(f"at most {limit} entries", f"{value}")
        return value

    def key_type(self, number: int) -> KeyType:
        if number not in _BY_NUMBER:
            raise self.damaged("a known type of key", f"type {number}")
        return _BY_NUMBER[number]

    def values(self, kind: KeyType, count: int) -> tuple[Scalar, ...]:
        if kind == "string":
            # Each takes eight bytes at least, so that a false number ends early.
            self._check(8 * count)
            return tuple(self.string() for _ in range(count))
        form = _FORMATS[kind]
        self._check(struct.calcsize(form) * count)
        return struct.unpack(f"<{count}{form}", self.take(struct.calcsize(form) * count))

    def string(self) -> str:
        raw = bytes(self.take(self.number("uint64")))
        try:
            return raw.decode()
        except UnicodeDecodeError as problem:
            raise self.damaged("UTF-8", repr(raw[:40])) from problem

    def damaged(self, expected: str, found: str) -> InputError:
        return InputError(
            "the GGUF file is damaged",
            where=self._where,
            expected=expected,
            found=found,
            hint=_HINT,
        )

    def _check(self, count: int) -> None:
        if self.position + count > len(self._data):
            raise self.damaged(f"{count} more bytes of header", f"{len(self._data)} bytes in all")
