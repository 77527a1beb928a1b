"""What Ollama reads off a GGUF when it makes a model of it: a few keys and the tensors' shapes."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from packager.errors import InputError

_KEYS = (
    "general.architecture",
    "general.type",
    "general.file_type",
    "split.count",
    "tokenizer.chat_template",
)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_MAX_STRING_BYTES = 16 << 20
_MAX_ELEMENTS = 64 << 20
_MAX_ENTRIES = 1 << 20
_MAX_DIMENSIONS = 4
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class GgufHeader:
    """What is read of one file.

    Attributes:
        architecture: As llama.cpp names it.
        kind: `model`, `adapter`, and so on; empty where the file does not say.
        file_type: Number of the mixture of tensor types; 0 for float32, and where it is missing.
        parameters: Elements of all its tensors.
        splits: Files that the model is split into; 1 if it is whole.
        chat_template: Jinja, or empty.
    """

    architecture: str
    kind: str
    file_type: int
    parameters: int
    splits: int
    chat_template: str


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads the header of a GGUF of version 2 or 3, within the bounds that Ollama keeps to.

    Source: ollama v0.33.0-rc2, fs/ggml/gguf.go (Decode), fs/gguf: strings of at most 16 MiB,
    arrays of at most 64 Mi elements, at most 4 dimensions.

    Raises:
        InputError: The file cannot be read or is no such GGUF.
    """
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            return _read(file)
    except OSError as problem:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=problem.strerror or "an I/O error",
            hint="check the path and its permissions",
        ) from problem
    except (ValueError, struct.error) as problem:
        raise InputError(
            "the file is not a GGUF that Ollama can read",
            where=str(path),
            found=str(problem)[:200],
            hint="release the bundle again, or copy it again",
        ) from problem


def _read(file: BinaryIO) -> GgufHeader:
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, keys = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    if max(tensors, keys) > _MAX_ENTRIES:
        raise ValueError(f"{tensors} tensors and {keys} keys")
    values = dict(_read_key(file) for _ in range(keys))
    parameters = sum(_read_elements(file) for _ in range(tensors))
    return GgufHeader(
        architecture=_text(values, "general.architecture"),
        kind=_text(values, "general.type"),
        file_type=_number(values, "general.file_type", 0),
        parameters=parameters,
        splits=max(1, _number(values, "split.count", 1)),
        chat_template=_text(values, "tokenizer.chat_template"),
    )


def _read_key(file: BinaryIO) -> tuple[str, str | int | None]:
    """Reads one key and its value; the value only where it is wanted."""
    name = _read_string(file).decode("utf-8", "replace")
    (kind,) = _unpack(file, "I")
    if kind == _STRING:
        text = _read_string(file)
        return name, text.decode("utf-8", "replace") if name in _KEYS else None
    if kind == _ARRAY:
        _skip_array(file)
        return name, None
    (value,) = _unpack(file, _scalar(kind))
    return name, value if isinstance(value, int) else None


def _skip_array(file: BinaryIO) -> None:
    kind, count = _unpack(file, "IQ")
    if count > _MAX_ELEMENTS:
        raise ValueError(f"an array of {count} elements")
    if kind != _STRING:
        _skip(file, struct.calcsize(_scalar(kind)) * count)
        return
    for _ in range(count):
        _skip(file, _string_bytes(file))


def _read_elements(file: BinaryIO) -> int:
    """Reads one tensor's entry; returns how many elements it has."""
    _skip(file, _string_bytes(file))
    (dimensions,) = _unpack(file, "I")
    if dimensions > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    shape = _unpack(file, f"{dimensions}Q")
    _unpack(file, "IQ")
    return math.prod(shape)


def _read_string(file: BinaryIO) -> bytes:
    size = _string_bytes(file)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends within its header")
    return data


def _string_bytes(file: BinaryIO) -> int:
    (size,) = _unpack(file, "Q")
    if size > _MAX_STRING_BYTES:
        raise ValueError(f"a text of {size} bytes")
    return int(size)


def _skip(file: BinaryIO, count: int) -> None:
    file.seek(count, 1)


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    layout = f"<{layout}"
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value of type {kind}")
    return _SCALARS[kind]


def _text(values: dict[str, str | int | None], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _number(values: dict[str, str | int | None], name: str, missing: int) -> int:
    value = values.get(name)
    return value if isinstance(value, int) else missing
