"""Importance matrices: how much each column of a matrix matters, as llama-imatrix measured it.

Two formats are read: GGUF, and the older one without a name.

Source: llama.cpp 0c1e57098, common/imatrix-loader.cpp and tools/quantize/quantize.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packager.errors import InputError
from packager.gguf.header import MAGIC, DataTensor, parse_header
from packager.gguf.value import GgufKey, GgufModel, key_value
from packager.untrusted import read_bytes

Weights = NDArray[np.float32]
MAX_BYTES = 2 << 30
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_TEXT = 127
_HINT = "make it again: llama-imatrix -m MODEL.gguf -f TEXT -o IMATRIX.gguf"


@dataclass(frozen=True)
class Imatrix:
    """The weights of a file.

    Attributes:
        name: Of the file.
        weights: Tensor name → weight of each column, of each stacked matrix in turn.
        dataset: What it was measured on, or empty.
        chunks: Of how many pieces; 0 where the file does not tell.
    """

    name: str
    weights: Mapping[str, Weights]
    dataset: str
    chunks: int


def read_imatrix(path: Path) -> Imatrix:
    """Reads an importance matrix.

    Raises:
        InputError: The file cannot be read, is damaged, or holds NaN or infinity.
    """
    data = read_bytes(path, max_bytes=MAX_BYTES)
    where = str(path)
    imatrix = (_parse_gguf if data[:4] == MAGIC else _parse_old)(data, path.name, where)
    for name, weights in imatrix.weights.items():
        if not np.isfinite(weights).all():
            raise _damaged(where, "finite weights", f"NaN or infinity for {name!r:.80}")
    return imatrix


def check_imatrix(imatrix: Imatrix, model: GgufModel) -> None:
    """Refuses weights of another model.

    The embedding may differ, as llama-quantize lets it, and is then quantised without weights.

    Raises:
        InputError: A tensor has another width or number of matrices.
    """
    for tensor in model.tensors:
        weights = imatrix.weights.get(tensor.name)
        wanted = _wanted_size(tensor.shape)
        if weights is None or weights.size == wanted or tensor.name == "token_embd.weight":
            continue
        raise InputError(
            f"the importance matrix does not fit tensor {tensor.name!r}",
            where=imatrix.name,
            expected=f"{wanted} weights",
            found=f"{weights.size}",
            hint="it was measured on another model: " + _HINT,
        )


def fitting_weights(imatrix: Imatrix, model: GgufModel) -> dict[str, Weights]:
    """Returns the weights of those tensors that have them, in float32."""
    found = {tensor.name: imatrix.weights.get(tensor.name) for tensor in model.tensors}
    sizes = {tensor.name: _wanted_size(tensor.shape) for tensor in model.tensors}
    return {
        name: weights
        for name, weights in found.items()
        if weights is not None and weights.size == sizes[name]
    }


def imatrix_keys(imatrix: Imatrix) -> tuple[GgufKey, ...]:
    """Returns the keys that tell of the matrix; of the file only its name, not its folder."""
    keys = [GgufKey("quantize.imatrix.file", "string", _shortened(imatrix.name))]
    if imatrix.dataset:
        keys.append(GgufKey("quantize.imatrix.dataset", "string", _shortened(imatrix.dataset)))
    keys.append(GgufKey("quantize.imatrix.entries_count", "uint32", len(imatrix.weights)))
    if imatrix.chunks > 0:
        keys.append(GgufKey("quantize.imatrix.chunks_count", "uint32", imatrix.chunks))
    return tuple(keys)


def _wanted_size(shape: tuple[int, ...]) -> int:
    return shape[-1] * (shape[0] if len(shape) == 3 else 1)


def _shortened(text: str) -> str:
    return text.encode()[:_MAX_TEXT].decode(errors="ignore")


def _parse_gguf(data: bytes, name: str, where: str) -> Imatrix:
    header = parse_header(data, where=where, size=len(data))
    datasets = key_value(header.keys, "imatrix.datasets")
    chunks = key_value(header.keys, "imatrix.chunk_count")
    if not isinstance(datasets, tuple) or not isinstance(chunks, int):
        raise _damaged(where, "imatrix.datasets and imatrix.chunk_count", "a GGUF without them")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    weights = {
        key.removesuffix(_SUMS): _mean(
            data, tensor, tensors.get(key[: -len(_SUMS)] + _COUNTS), where
        )
        for key, tensor in tensors.items()
        if key.endswith(_SUMS)
    }
    if not weights:
        raise _damaged(where, f"tensors named like *{_SUMS}", "none")
    return Imatrix(name, weights, str(datasets[0]) if datasets else "", chunks)


def _mean(data: bytes, sums: DataTensor, counts: DataTensor | None, where: str) -> Weights:
    """Returns sums over counts, for each matrix; one of which no token was seen weighs 1."""
    if counts is None or {sums.type, counts.type} != {"F32"}:
        raise _damaged(where, f"counts for {sums.name!r:.80}, both in F32", "something else")
    number = np.trunc(_floats(data, counts.offset, counts.nbytes // 4) + np.float32(0.5))
    values = _floats(data, sums.offset, sums.nbytes // 4)
    if not number.size or values.size % number.size:
        raise _damaged(where, f"a count for each matrix of {sums.name!r:.80}", f"{number.size}")
    matrices = values.reshape(number.size, -1)
    seen = number > 0
    matrices[seen] /= number[seen, None]
    matrices[~seen] = 1
    return matrices.reshape(-1)


def _parse_old(data: bytes, name: str, where: str) -> Imatrix:
    """Parses a number of entries, each of name, calls, and sums; then calls and dataset."""
    try:
        weights: dict[str, Weights] = {}
        (entries,), position = struct.unpack_from("<i", data), 4
        for _ in range(entries):
            key, position = _old_text(data, position)
            calls, size = struct.unpack_from("<ii", data, position)
            if size < 1:
                raise _damaged(where, "one weight at least", f"{size} for {key!r:.80}")
            values = _floats(data, position + 8, size)
            position += 8 + 4 * size
            weights[key] = values / np.float32(calls) if calls > 0 else values
        chunks, dataset = 0, ""
        if position < len(data):
            (chunks,) = struct.unpack_from("<i", data, position)
            dataset, position = _old_text(data, position + 4)
    except (struct.error, ValueError) as problem:
        raise _damaged(where, "an importance matrix of llama.cpp", str(problem)[:80]) from problem
    if not weights:
        raise _damaged(where, "an importance matrix of llama.cpp", "no entry")
    return Imatrix(name, weights, dataset, chunks)


def _old_text(data: bytes, position: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<i", data, position)
    raw = data[position + 4 : position + 4 + size]
    if size < 0 or len(raw) != size:
        raise ValueError(f"a text of {size} bytes")
    return raw.decode(), position + 4 + size


def _floats(data: bytes, offset: int, count: int) -> Weights:
    """Returns a copy, so that it is aligned and may be changed."""
    return np.frombuffer(data, "<f4", count, offset).astype(np.float32)


def _damaged(where: str, expected: str, found: str) -> InputError:
    return InputError(
        "the importance matrix is damaged",
        where=where,
        expected=expected,
        found=found,
        hint=_HINT,
    )
