"""safetensors files without their data: header parser, header writer, references to tensors.

Source: safetensors 0.8, README.md "Format" and src/tensor.rs: eight bytes of little-endian
header length, a JSON object of at most 100 MB, then the tensors back to back without holes.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from packager.dtype import ITEM_BYTES
from packager.errors import InputError, UnsafeInputError
from packager.untrusted import parse_json_object

MAX_HEADER_BYTES = 100_000_000
_MAX_NAME = 1024
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class TensorRef:
    """Where a tensor lies, without its data.

    Attributes:
        name: Name in the file.
        file: The safetensors file.
        offset: First byte of the data, counted from the start of the file.
        dtype: safetensors element type.
        shape: Row-major.
    """

    name: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A parsed header.

    Attributes:
        path: The file.
        metadata: `__metadata__`, strings only.
        tensors: In the order of their data.
        data_start: First byte after the header.
        size: Of the whole file in bytes.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: tuple[TensorRef, ...]
    data_start: int
    size: int


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Returns the bytes of a tensor of `dtype` and `shape`."""
    return ITEM_BYTES[dtype] * math.prod(shape)


def read_header(path: Path) -> TensorFile:
    """Reads and checks the header of a safetensors file; no data is read.

    Raises:
        UnsafeInputError: The file is a pickle.
        InputError: The file is missing, cut short, or its header does not describe its data.
    """
    where = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                "the weights file is not a regular file",
                where=where,
                hint="check the path; download the folder again",
            )
        size = status.st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = header_length(start, size, where)
            raw = file.read(length)
    except OSError as problem:
        raise InputError(
            "the weights file cannot be read",
            where=where,
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions; if it is missing, download the folder again",
        ) from problem
    return parse_header(raw, path=path, size=size)


def parse_header(raw: bytes, *, path: Path, size: int) -> TensorFile:
    """Parses the JSON of a header and checks it against the file's size.

    Args:
        raw: The JSON bytes after the eight length bytes.
        path: The file, for the references and for errors.
        size: Of the whole file in bytes.

    Raises:
        InputError: Not JSON, unknown dtype, a shape that does not match its bytes, holes,
            overlaps, or data that ends elsewhere than the file.
    """
    where = str(path)
    header = parse_json_object(raw, where=f"{where} (header)", constants=False)
    metadata = _metadata(header.pop("__metadata__", {}), where)
    data_start = 8 + len(raw)
    entries = sorted(
        (_entry(name, value, where) for name, value in header.items()), key=lambda item: item[:2]
    )
    refs: list[TensorRef] = []
    position = 0
    for begin, end, name, dtype, shape in entries:
        if begin != position:
            raise _damaged(where, f"data of {name!r} at {position}", f"at {begin}")
        refs.append(TensorRef(name, path, data_start + begin, dtype, shape))
        position = end
    if data_start + position != size:
        raise _damaged(where, f"{data_start + position} bytes", f"{size} bytes")
    return TensorFile(path, metadata, tuple(refs), data_start, size)


def render_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    *,
    data_start: int | None = None,
    page: int = 4096,
) -> bytes:
    """Writes a header: length bytes, JSON, and spaces up to the wanted start of the data.

    Args:
        tensors: (name, dtype, shape) in the order of their data.
        metadata: `__metadata__`.
        data_start: A start of data in another file; ours is made congruent to it modulo `page`,
            so that a file system that shares blocks can share the tensors behind it.
        page: Block size in bytes, a multiple of eight.

    Returns:
        The first bytes of the file; the data follows.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        end = position + tensor_bytes(dtype, shape)
        header[name] = {
            "dtype": dtype, "shape": list(shape), "data_offsets": [position, end],
        }  # fmt: skip
        position = end
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    step = page if data_start is not None else 8
    wanted = data_start if data_start is not None and data_start % 8 == 0 else 0
    raw += b" " * ((wanted - 8 - len(raw)) % step)
    return len(raw).to_bytes(8, "little") + raw


def read_span(ref: TensorRef, first: int, count: int) -> bytearray:
    """Reads `count` bytes of a tensor, from byte `first` of its data on.

    Raises:
        InputError: The file cannot be read or is cut short.
    """
    buffer = bytearray(count)
    try:
        descriptor = os.open(ref.file, os.O_RDONLY)
    except OSError as problem:
        raise _unreadable(ref, problem) from problem
    try:
        read_exactly(descriptor, memoryview(buffer), ref.offset + first, ref)
    finally:
        os.close(descriptor)
    return buffer


def read_exactly(descriptor: int, view: memoryview, offset: int, ref: TensorRef) -> None:
    """Fills `view` with the bytes from `offset` on, which belong to the tensor `ref`.

    Raises:
        InputError: The file cannot be read or is cut short.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as problem:
            raise _unreadable(ref, problem) from problem
        if count == 0:
            raise InputError(
                f"the file ends within tensor {ref.name!r}",
                where=str(ref.file),
                expected=f"{ref.offset + ref.nbytes} bytes",
                found=f"{offset + done}",
                hint="the file changed while it was read: copy or download it again",
            )
        done += count


def _unreadable(ref: TensorRef, problem: OSError) -> InputError:
    return InputError(
        "the file cannot be read",
        where=str(ref.file),
        found=problem.strerror or "an I/O error",
        hint="check the disk; copy or download the file again",
    )


def check_not_pickle(path: Path) -> None:
    """Refuses a weights file that is a pickle by its name.

    Raises:
        UnsafeInputError: With the way to convert it.
    """
    if path.suffix in _PICKLE_SUFFIXES:
        raise UnsafeInputError(
            "the weights are a pickle, which can run code when it is opened",
            where=str(path),
            expected="safetensors",
            hint="convert it where you trust it: load it with transformers or PEFT and call "
            "save_pretrained(..., safe_serialization=True)",
        )


def header_length(start: bytes, size: int, where: str) -> int:
    """Reads the length of a header, which follows these bytes.

    Args:
        start: The first eight bytes of the file, or all of a shorter one.
        size: Of the whole file in bytes.
        where: The file, for the error.

    Raises:
        UnsafeInputError: The file is a pickle.
        InputError: It is too short for its header, or the header too long.
    """
    length = int.from_bytes(start, "little")
    if len(start) == 8 and 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        return length
    if start[:2] in _PICKLE_STARTS:
        raise UnsafeInputError(
            "the weights are a pickle under another name",
            where=where,
            expected="safetensors",
            hint="do not open this file; ask its author for safetensors",
        )
    raise _damaged(where, f"a header that fits in {size} bytes", f"a header length of {length}")


def _metadata(raw: Any, where: str) -> dict[str, str]:
    if isinstance(raw, dict) and all(isinstance(value, str) for value in raw.values()):
        return raw
    raise _damaged(where, "string metadata", repr(raw)[:80])


def _entry(name: str, raw: Any, where: str) -> tuple[int, int, str, str, tuple[int, ...]]:
    if len(name) > _MAX_NAME or not isinstance(raw, dict):
        raise _damaged(where, "a tensor entry", repr(name)[:80])
    dtype, shape, offsets = raw.get("dtype"), raw.get("shape"), raw.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise InputError(
            f"tensor {name!r:.80} is of a type that lorapack does not read",
            where=where,
            expected="whole bytes, such as BF16",
            found=repr(dtype)[:40],
            hint="give the 16-bit original of this model",
        )
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise _damaged(where, f"whole numbers for {name!r}", f"{shape!r:.80} at {offsets!r:.80}")
    (begin, end), size = offsets, tensor_bytes(dtype, tuple(shape))
    if end - begin != size:
        raise _damaged(where, f"{size} bytes", f"{end - begin} for {name!r}")
    return begin, end, name, dtype, tuple(shape)


def _whole_numbers(raw: Any) -> TypeGuard[list[int]]:
    return (
        isinstance(raw, list)
        and len(raw) <= 16
        and all(type(item) is int and 0 <= item < 1 << 62 for item in raw)
    )


def _damaged(where: str, expected: str, found: str) -> InputError:
    return InputError(
        "the safetensors file is damaged",
        where=where,
        expected=expected,
        found=found,
        hint="the file may be cut short: copy or download it again",
    )
