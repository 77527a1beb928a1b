"""How the values of one tensor are stored, when they are not stored as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from packager.tensorfile import TensorRef

FourBitKind = Literal["nf4", "fp4"]

FOUR_BIT_BLOCK = 64
"""Values that share a scale where a weight is quantised on loading.

Source: bitsandbytes 0.50, nn/modules.py, Params4bit: `blocksize` where none is given.
"""


@dataclass(frozen=True)
class NestedScales:
    """Scales of blocks that are themselves stored in eight bits: `code[scale] · absmax + offset`.

    Attributes:
        absmax: Of each block of scales, shape (ceil(scales / block),), F32.
        codes: What each byte stands for, shape (256,), F32.
        block: Scales that share one of `absmax`.
        offset: Added to every scale.
    """

    absmax: TensorRef
    codes: TensorRef
    block: int
    offset: float


@dataclass(frozen=True)
class FourBit:
    """Two values a byte, the first one in the high half: `code[half] · absmax of its block`.

    Source: bitsandbytes 0.50, functional.py, QuantState and quantize_4bit.

    Attributes:
        packed: ceil(values / 2) bytes, whatever type they are called by.
        kind: Which sixteen values the halves stand for.
        codes: These values, shape (16,), F32.
        absmax: Of each block, shape (ceil(values / block),): F32, or U8 where `nested`.
        block: Consecutive values, of the whole tensor, that share a scale.
        nested: How the scales are stored, or None where they are as they are.
    """

    packed: TensorRef
    kind: FourBitKind
    codes: TensorRef
    absmax: TensorRef
    block: int
    nested: NestedScales | None


@dataclass(frozen=True)
class EightBit:
    """Whole numbers with a scale for each row: `number · scale / 127`.

    Source: bitsandbytes 0.50, functional.py, int8_vectorwise_dequant.

    Attributes:
        packed: Shape of the tensor, I8.
        scales: Shape (rows,), F32.
    """

    packed: TensorRef
    scales: TensorRef


@dataclass(frozen=True)
class Turned:
    """A weight of Conv1D, which transformers turns round before it is quantised, and never back.

    Attributes:
        inner: How it is stored.
        shape: As it is stored: (out_features, in_features).
    """

    inner: FourBit | EightBit
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ScaledFloat:
    """Short floats with a scale for each rectangle of the matrix: `float · scale`.

    Source: transformers 5.23, integrations/finegrained_fp8.py, Fp8Dequantize; compressed-tensors
    0.15, quantization/lifecycle/forward.py, dequantize.

    Attributes:
        packed: Shape of the tensor, F8_E4M3 or F8_E5M2.
        scales: One for each rectangle, row-major, leading dimensions as in `packed`; U8 and
            F8_E8M0 hold exponents of two, biased by 127.
        block: Rows and columns of a rectangle; those at the edges may be smaller.
    """

    packed: TensorRef
    scales: TensorRef
    block: tuple[int, int]


@dataclass(frozen=True)
class Microscaled:
    """MXFP4 of experts: 32 values of four bits share an exponent; stored transposed.

    Source: transformers 5.23, integrations/mxfp4.py, convert_moe_packed_tensors.

    Attributes:
        packed: Shape (experts, columns, rows / 32, 16), U8, the first value in the low half.
        scales: Shape (experts, columns, rows / 32), U8: exponents of two, biased by 127.
    """

    packed: TensorRef
    scales: TensorRef


@dataclass(frozen=True)
class FourBitLoad:
    """A plain weight as bitsandbytes makes it when a model is loaded in four bits, and back.

    Attributes:
        plain: The stored weight.
        kind: Which sixteen values.
        double: Whether the scales are quantised too.
        dtype: In which the model was loaded, as safetensors names it, or None for as stored.
        transposed: Whether the layer has the weight the other way round than it is stored; it is
            quantised as the layer has it.
    """

    plain: TensorRef
    kind: FourBitKind
    double: bool
    dtype: str | None = None
    transposed: bool = False


@dataclass(frozen=True)
class EightBitLoad:
    """A plain weight as bitsandbytes makes it when a model is loaded in eight bits, and back.

    Attributes:
        plain: The stored weight.
        transposed: As of `FourBitLoad`.
    """

    plain: TensorRef
    transposed: bool = False


Encoding = FourBit | EightBit | Turned | ScaledFloat | Microscaled | FourBitLoad | EightBitLoad


@dataclass(frozen=True)
class QuantisedRef(TensorRef):
    """A tensor whose values come out of an encoding; `offset` says nothing about them.

    Its dtype is what they are rounded to when they are written without an update.

    Attributes:
        encoding: How they are stored.
    """

    encoding: Encoding

    @property
    def stored(self) -> tuple[TensorRef, ...]:
        """Every tensor of the file that takes part."""
        encoding = self.encoding
        if isinstance(encoding, Turned):
            encoding = encoding.inner
        if isinstance(encoding, FourBit):
            nested = encoding.nested
            more = () if nested is None else (nested.absmax, nested.codes)
            return (encoding.packed, encoding.codes, encoding.absmax, *more)
        if isinstance(encoding, FourBitLoad | EightBitLoad):
            return (encoding.plain,)
        return (encoding.packed, encoding.scales)


def row_count(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns rows, leading dimensions flattened, and their width; a vector is one row."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1
