"""Values of quantised tensors, a block of rows at a time, in float32.

What is kept between blocks are the scales: a value in 32 of the tensor or fewer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from packager.dtype import TORCH_NAMES
from packager.quantisation.blockwise import (
    choose_halves,
    half_codes,
    quantise_scales,
    restore_scales,
    scale_down,
)
from packager.quantisation.encoding import (
    FOUR_BIT_BLOCK,
    EightBit,
    EightBitLoad,
    Encoding,
    FourBit,
    FourBitLoad,
    Microscaled,
    QuantisedRef,
    ScaledFloat,
    Turned,
    row_count,
)
from packager.tensorfile import TensorRef, read_span, tensor_bytes

_BLOCK_ELEMENTS = 1 << 20
_KEPT = 4
"""Tensors whose scales stay in memory: two threads may work on each of two tensors."""
_RECIPROCAL_OF_127 = 7.874015718698502e-3
"""As bitsandbytes writes it; a division would round otherwise."""
_EXPONENT_BIAS = 127
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of MXFP4 with a positive sign. Source: OCP Microscaling Formats 1.0, section 5.3.3, E2M1."""
MICROSCALED_BLOCK = 32


class Values(ABC):
    """The rows of one quantised tensor; safe to be read by several threads."""

    @abstractmethod
    def read(self, first: int, count: int) -> Tensor:
        """Reads rows, leading dimensions flattened.

        Returns:
            Shape (count, width), float32.

        Raises:
            InputError: A file cannot be read.
        """


def read_values(ref: QuantisedRef, first: int, count: int) -> Tensor:
    """Reads rows of a quantised tensor, a row being all dimensions but the first.

    Returns:
        Shape (count, *ref.shape[1:]), float32: values are not rounded to the tensor's dtype.

    Raises:
        InputError: A file cannot be read.
    """
    height = math.prod(ref.shape[1:-1])
    values = open_values(ref).read(first * height, count * height)
    return values.view(count, *ref.shape[1:])


def open_values(ref: QuantisedRef) -> Values:
    """Reads the scales of a tensor, so that its rows can be read.

    Those of the tensors read last are kept: whoever reads a tensor asks for it block by block.

    Raises:
        InputError: A file cannot be read.
    """
    identities = tuple(_identify(part.file) for part in ref.stored)
    return _open(ref.encoding, row_count(ref.shape)[1], identities)


@lru_cache(maxsize=_KEPT)
def _open(encoding: Encoding, width: int, _identities: tuple[tuple[int, ...], ...]) -> Values:
    if isinstance(encoding, Turned):
        return _TurnedValues(encoding)
    return _open_as_stored(encoding, width)


def _open_as_stored(encoding: Encoding, width: int) -> Values:
    if isinstance(encoding, FourBit):
        return _FourBitValues(encoding, width)
    if isinstance(encoding, EightBit):
        return _EightBitValues(encoding, width)
    if isinstance(encoding, ScaledFloat):
        return _ScaledValues(encoding)
    if isinstance(encoding, Microscaled):
        return _MicroscaledValues(encoding)
    if isinstance(encoding, FourBitLoad):
        return _FourBitLoadValues(encoding)
    assert isinstance(encoding, EightBitLoad)
    return _EightBitLoadValues(encoding)


class _FourBitValues(Values):
    def __init__(self, encoding: FourBit, width: int) -> None:
        self._encoding, self._width = encoding, width
        self._codes = _whole(encoding.codes)
        self._scales = _whole(encoding.absmax)
        nested = encoding.nested
        if nested is not None:
            offset = torch.tensor(nested.offset, dtype=torch.float32)
            tables = _whole(nested.codes), _whole(nested.absmax)
            self._scales = restore_scales(self._scales, *tables, nested.block, offset)

    def read(self, first: int, count: int) -> Tensor:
        start, end = first * self._width, (first + count) * self._width
        raw = read_span(self._encoding.packed, start // 2, (end + 1) // 2 - start // 2)
        packed = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
        halves = torch.stack((packed >> 4, packed & 15), dim=1).view(-1)
        wanted = halves[start % 2 : start % 2 + end - start].int()
        values = self._codes[wanted]
        return _times_scales(values, start, self._scales, self._encoding.block).view(
            -1, self._width
        )


class _TurnedValues(Values):
    """All of them, since a row is a column of what is stored."""

    def __init__(self, encoding: Turned) -> None:
        rows, width = row_count(encoding.shape)
        inner = _open_as_stored(encoding.inner, width)
        self._values = inner.read(0, rows).T.contiguous()

    def read(self, first: int, count: int) -> Tensor:
        return self._values[first : first + count]


def _times_scales(values: Tensor, start: int, scales: Tensor, block: int) -> Tensor:
    """Multiplies consecutive values in place; `start` is the number of the first one."""
    if start % block == 0 and len(values) % block == 0:
        own = scales[start // block : (start + len(values)) // block]
        values.view(-1, block).mul_(own.view(-1, 1))
        return values
    number = torch.arange(start, start + len(values)).div_(block, rounding_mode="floor")
    return values.mul_(scales[number])


class _EightBitValues(Values):
    def __init__(self, encoding: EightBit, width: int) -> None:
        self._encoding, self._width = encoding, width
        self._scales = _whole(encoding.scales).float().view(-1, 1)

    def read(self, first: int, count: int) -> Tensor:
        numbers = _rows(self._encoding.packed, first, count)
        return numbers * self._scales[first : first + count] * _RECIPROCAL_OF_127


class _ScaledValues(Values):
    def __init__(self, encoding: ScaledFloat) -> None:
        self._encoding = encoding
        self._packed = replace(encoding.packed, shape=row_count(encoding.packed.shape))
        self._rows, self._width = encoding.packed.shape[-2:]
        height, width = encoding.block
        grid = -(-self._rows // height), -(-self._width // width)
        stored = _whole(encoding.scales)
        if stored.dtype == torch.uint8:
            stored = stored.view(torch.float8_e8m0fnu)
        self._scales = stored.float().view(-1, *grid)

    def read(self, first: int, count: int) -> Tensor:
        height, width = self._encoding.block
        number = torch.arange(first, first + count)
        matrix = number.div(self._rows, rounding_mode="floor")
        band = number.remainder(self._rows).div(height, rounding_mode="floor")
        scales = self._scales[matrix, band].repeat_interleave(width, dim=1)[:, : self._width]
        return _rows(self._packed, first, count).float().mul_(scales)


class _MicroscaledValues(Values):
    """Rows of an expert are columns of what is stored: its bytes are read whole, and few used."""

    def __init__(self, encoding: Microscaled) -> None:
        self._packed, self._scales = encoding.packed, encoding.scales
        self._columns, self._groups = encoding.packed.shape[1:3]
        self._codes = torch.tensor((*_FP4_VALUES, *(-value for value in _FP4_VALUES)))

    def read(self, first: int, count: int) -> Tensor:
        rows, done = self._groups * MICROSCALED_BLOCK, 0
        parts = []
        while done < count:
            expert, row = divmod(first + done, rows)
            step = min(count - done, rows - row)
            parts.append(self._read_expert(expert, row, step))
            done += step
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _read_expert(self, expert: int, first: int, count: int) -> Tensor:
        low = first // MICROSCALED_BLOCK
        groups = slice(low, -(-(first + count) // MICROSCALED_BLOCK))
        packed = _rows(self._packed, expert, 1)[0][:, groups]
        exponents = _rows(self._scales, expert, 1)[0][:, groups].int() - _EXPONENT_BIAS
        halves = torch.stack((packed & 15, packed >> 4), dim=-1).view(*exponents.shape, -1)
        values = torch.ldexp(self._codes[halves.int()], exponents.unsqueeze(-1))
        start = first - low * MICROSCALED_BLOCK
        return values.view(self._columns, -1)[:, start : start + count].T.contiguous()


class _FourBitLoadValues(Values):
    def __init__(self, encoding: FourBitLoad) -> None:
        self._encoding = encoding
        total = -(-encoding.plain.nbytes // (_unit(encoding.plain) * FOUR_BIT_BLOCK))
        scales = torch.zeros(total, dtype=torch.float32)
        for first, values in _blocks(encoding.plain):
            sizes = _as_loaded(values, encoding).abs().flatten()
            scales.scatter_reduce_(0, self._blocks_of(first, values.shape), sizes, "amax")
        self._scales = scales
        self._restored = quantise_scales(scales).restore() if encoding.double else scales

    def read(self, first: int, count: int) -> Tensor:
        values = _as_loaded(_rows(self._encoding.plain, first, count), self._encoding)
        number = self._blocks_of(first, values.shape)
        scaled = scale_down(values.flatten(), self._scales[number])
        halves = choose_halves(scaled, self._encoding.kind)
        return (half_codes(self._encoding.kind)[halves] * self._restored[number]).view(values.shape)

    def _blocks_of(self, first: int, shape: torch.Size) -> Tensor:
        """Returns the number of the block of each value of some rows, flat."""
        rows, width = self._encoding.plain.shape
        row = torch.arange(first, first + shape[0]).view(-1, 1)
        column = torch.arange(width)
        place = column * rows + row if self._encoding.transposed else row * width + column
        return place.div_(FOUR_BIT_BLOCK, rounding_mode="floor").view(-1)


class _EightBitLoadValues(Values):
    def __init__(self, encoding: EightBitLoad) -> None:
        self._plain = encoding.plain
        self._scales: Tensor | None = None
        if encoding.transposed:
            self._scales = torch.zeros(encoding.plain.shape[1], dtype=torch.float32)
            for _, values in _blocks(encoding.plain):
                sizes = values.half().abs().amax(dim=0).float()
                self._scales = torch.maximum(self._scales, sizes)

    def read(self, first: int, count: int) -> Tensor:
        return round_rows(_rows(self._plain, first, count), self._scales)


def round_rows(values: Tensor, scales: Tensor | None = None) -> Tensor:
    """Returns what values stand for that bitsandbytes quantises in eight bits, float32.

    Args:
        values: Shape (rows, width).
        scales: Of each column, or None for one of each row.
    """
    values = values.half()
    if scales is None:
        scales = values.abs().amax(dim=1).float().view(-1, 1)
    # Nothing is what becomes of a row of zeros, whose scale has no reciprocal.
    numbers = torch.round(values * (127.0 / scales)).nan_to_num_(0).to(torch.int8)
    return numbers * scales * _RECIPROCAL_OF_127


def _as_loaded(values: Tensor, encoding: FourBitLoad) -> Tensor:
    """Returns values rounded to the type that the model was loaded in, float32."""
    if encoding.dtype is None:
        return values.float()
    return values.to(getattr(torch, TORCH_NAMES[encoding.dtype])).float()


def _blocks(ref: TensorRef) -> Iterator[tuple[int, Tensor]]:
    rows, width = ref.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    for first in range(0, rows, step):
        yield first, _rows(ref, first, min(step, rows - first))


def _rows(ref: TensorRef, first: int, count: int) -> Tensor:
    """Reads rows as they are stored; a row has all dimensions but the first."""
    shape = (count, *ref.shape[1:])
    size = tensor_bytes(ref.dtype, shape[1:])
    dtype: torch.dtype = getattr(torch, TORCH_NAMES[ref.dtype])
    if not size or not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(read_span(ref, first * size, count * size), dtype=dtype).view(shape)


def _identify(path: Path) -> tuple[int, ...]:
    """Tells a file from what was there before; of one that is missing, reading tells."""
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return ()


def _whole(ref: TensorRef) -> Tensor:
    """Reads a small tensor, flat."""
    flat = TensorRef(ref.name, ref.file, ref.offset, ref.dtype, (ref.nbytes // _unit(ref),))
    return _rows(flat, 0, flat.shape[0])


def _unit(ref: TensorRef) -> int:
    return tensor_bytes(ref.dtype, (1,))
