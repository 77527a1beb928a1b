"""Which tensor lies where in which file of a quantised model: all sizes before the first byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from packager.gguf.header import padded, render_header
from packager.gguf.mixture import FILE_TYPES, Quant, TypedTensor, choose_types
from packager.gguf.value import GgufKey, GgufModel

QUANTIZATION_VERSION = 2
"""Source: llama.cpp 0c1e57098, ggml/include/ggml.h, GGML_QNT_VERSION."""


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor with its place.

    Attributes:
        tensor: Name, shape and type.
        offset: Of its data from the start of the file.
    """

    tensor: TypedTensor
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """One file of one quantisation.

    Attributes:
        path: Relative POSIX path.
        quant: Which quantisation.
        number: Of the part, from 0.
        count: Of parts.
        keys: That the file has besides the model's, which only the first part carries.
        tensors: In the order of their data.
        data_start: First byte of the data.
        size: Of the file in bytes.
    """

    path: str
    quant: Quant
    number: int
    count: int
    keys: tuple[GgufKey, ...]
    tensors: tuple[PlacedTensor, ...]
    data_start: int
    size: int


def plan_files(
    model: GgufModel,
    quant: Quant,
    stem: str,
    *,
    max_bytes: int | None = None,
    imatrix_keys: tuple[GgufKey, ...] | None = None,
) -> tuple[GgufFile, ...]:
    """Lays out the files of one quantisation.

    Args:
        model: The model.
        quant: The quantisation.
        stem: Path without `.gguf`.
        max_bytes: Most bytes of tensors in a file; a larger tensor gets a file of its own. None
            for a single file.
        imatrix_keys: What an importance matrix adds, or None without one.

    Returns:
        One file, or parts as llama-gguf-split names and cuts them.
    """
    typed = choose_types(model, quant, has_imatrix=imatrix_keys is not None)
    own = (
        GgufKey("general.quantization_version", "uint32", QUANTIZATION_VERSION),
        GgufKey("general.file_type", "uint32", FILE_TYPES[quant]),
        *(imatrix_keys or ()),
    )
    groups = list(_split(typed, max_bytes))
    return tuple(
        _place(model, quant, _file_name(stem, number, len(groups)), number, len(groups), group,
               (*(own if number == 0 else ()), *_split_keys(number, len(groups), len(typed))))
        for number, group in enumerate(groups)
    )  # fmt: skip


def render_start(model: GgufModel, file: GgufFile) -> bytes:
    """Returns the first bytes of a file, up to its data."""
    return render_header(
        model.keys if file.number == 0 else (),
        file.keys,
        [(item.tensor.name, item.tensor.type, item.tensor.shape) for item in file.tensors],
    )


def _place(
    model: GgufModel,
    quant: Quant,
    path: str,
    number: int,
    count: int,
    tensors: list[TypedTensor],
    keys: tuple[GgufKey, ...],
) -> GgufFile:
    unplaced = tuple(PlacedTensor(tensor, 0) for tensor in tensors)
    start = len(render_start(model, GgufFile(path, quant, number, count, keys, unplaced, 0, 0)))
    placed: list[PlacedTensor] = []
    position = start
    for tensor in tensors:
        placed.append(PlacedTensor(tensor, position))
        position += padded(tensor.nbytes)
    return GgufFile(path, quant, number, count, keys, tuple(placed), start, position)


def _split(tensors: tuple[TypedTensor, ...], max_bytes: int | None) -> Iterator[list[TypedTensor]]:
    """Cuts where the next tensor would not fit.

    Source: llama.cpp 0c1e57098, tools/gguf-split/gguf-split.cpp, should_split.
    """
    group: list[TypedTensor] = []
    filled = 0
    for tensor in tensors:
        size = padded(tensor.nbytes)
        if group and max_bytes is not None and filled + size > max_bytes:
            yield group
            group, filled = [], 0
        group.append(tensor)
        filled += size
    yield group


def _split_keys(number: int, count: int, tensors: int) -> tuple[GgufKey, ...]:
    """Returns the keys of a part, in the order in which llama-gguf-split leaves them."""
    if count == 1:
        return ()
    return (
        GgufKey("split.no", "uint16", number),
        GgufKey("split.tensors.count", "int32", tensors),
        GgufKey("split.count", "uint16", count),
    )


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.gguf" if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"
