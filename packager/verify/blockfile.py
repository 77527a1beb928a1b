"""The headers of GGUF files against their plan: every key and tensor, and nothing left over."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from packager.errors import InputError
from packager.gguf.block import inner_shape
from packager.gguf.header import GgufHeader, parse_header
from packager.gguf.layout import GgufFile
from packager.gguf.value import GgufKey, KeyValue
from packager.plan import GgufPlan

_SPARE_BYTES = 1 << 16


def check_headers(plan: GgufPlan, files: Sequence[GgufFile], folder: Path) -> Iterator[str]:
    """Yields one line per key or tensor that differs, is missing, or is left over.

    Args:
        plan: Of the target.
        files: The files of one quantisation.
        folder: Of the target.
    """
    for file in files:
        path = folder / file.path
        try:
            header = _read_header(path, file)
        except InputError as problem:
            yield str(problem)
            continue
        except OSError as problem:
            yield f"{file.path} cannot be read: {problem.strerror}"
            continue
        yield from _check_tensors(file, header)
        yield from _check_keys(plan, file, header)


def _read_header(path: Path, file: GgufFile) -> GgufHeader:
    with path.open("rb") as stream:
        start = stream.read(file.data_start + _SPARE_BYTES)
    return parse_header(start, where=str(path), size=path.stat().st_size)


def _check_tensors(file: GgufFile, header: GgufHeader) -> Iterator[str]:
    wanted = {
        placed.tensor.name: (
            placed.tensor.type,
            inner_shape(placed.tensor.shape),
            placed.offset,
        )
        for placed in file.tensors
    }
    found = {
        tensor.name: (tensor.type, inner_shape(tensor.shape), tensor.offset)
        for tensor in header.tensors
    }
    yield from (f"{name} is missing" for name in wanted.keys() - found.keys())
    yield from (f"{name} is left over" for name in found.keys() - wanted.keys())
    for name in wanted.keys() & found.keys():
        if wanted[name] != found[name]:
            yield f"{name} is {_describe(found[name])}, not {_describe(wanted[name])}"


def _describe(tensor: tuple[str, tuple[int, ...], int]) -> str:
    kind, shape, offset = tensor
    return f"{kind} {shape} at byte {offset}"


def _check_keys(plan: GgufPlan, file: GgufFile, header: GgufHeader) -> Iterator[str]:
    """Only the first part of a split model carries the model's own keys."""
    own = (*plan.keys, *file.keys) if file.number == 0 else file.keys
    wanted = {key.name: (key.type, _stored(key)) for key in own}
    long = {key.name: key for key in plan.long_keys} if file.number == 0 else {}
    found = {key.name: key for key in header.keys}
    names = wanted.keys() | long.keys()
    yield from (f"key {name} is missing" for name in names - found.keys())
    yield from (f"key {name} is left over" for name in found.keys() - names)
    for name in wanted.keys() & found.keys():
        key = found[name]
        if (key.type, _stored(key)) != wanted[name]:
            yield f"key {name} is {str(key.value)[:80]!r}, not {str(wanted[name][1])[:80]!r}"
    for name in long.keys() & found.keys():
        if (found[name].type, _digest(found[name])) != (long[name].type, long[name].sha256):
            yield f"key {name} has other values than the plan's"


def _stored(key: GgufKey) -> KeyValue:
    """The value as the file holds it: a float32 has fewer digits than a plan's number."""
    if key.type != "float32":
        return key.value
    if isinstance(key.value, tuple):
        return tuple(_float32(value) for value in key.value)
    return _float32(key.value)


def _float32(value: object) -> float:
    result: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return result


def _digest(key: GgufKey) -> str:
    text = json.dumps(key.value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
