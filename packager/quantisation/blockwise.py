"""bitsandbytes' four bits: sixteen values, and scales of blocks that may be quantised themselves.

The arithmetic is written here once more, in the order in which bitsandbytes does it, so that the
bits are the same and neither bitsandbytes nor a GPU is needed; tests hold it against bitsandbytes.
Its own kernel for processors (0.50) takes wrong scales where rows do not fill blocks. For scales in
eight bits it rounds to a table of 65,536 places before it takes the nearest of 256 values, so that
one in a hundred or fewer falls to the neighbour; its kernel for GPUs, which adapters are trained
with, takes the nearest itself, and so does this.

Source: bitsandbytes 0.50, functional.py (get_4bit_type, create_dynamic_map, quantize_4bit),
backends/default/ops.py (quantize_4bit, quantize_blockwise); csrc/kernels.cu (dQuantize),
csrc/cpu_ops.cpp (build_quantize_lut, norm_to_lut_index).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from packager.quantisation.encoding import FOUR_BIT_BLOCK, FourBitKind

SCALES_BLOCK = 256
"""Scales that share a scale of their own."""

_LEAST_SCALE = 1e-38
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Of a positive sign, in the order of the bits; they are scaled so that the largest is 1."""
_EXPONENTS = 7


@dataclass(frozen=True)
class ScaleCodes:
    """Scales in eight bits.

    Attributes:
        codes: One byte for each scale, uint8.
        absmax: Of each block of scales, float32.
        offset: Mean of the scales, which was taken off before; a float32 scalar.
    """

    codes: Tensor
    absmax: Tensor
    offset: Tensor

    def restore(self) -> Tensor:
        """Returns the scales as they come out again, float32."""
        return restore_scales(self.codes, byte_codes(), self.absmax, SCALES_BLOCK, self.offset)


@cache
def half_codes(kind: FourBitKind) -> Tensor:
    """Returns what each of sixteen halves of a byte stands for, float32."""
    values = _NF4 if kind == "nf4" else (*_FP4, *(0.0 - value for value in _FP4))
    codes = torch.tensor(values, dtype=torch.float32)
    return codes.div_(codes.abs().max())


@cache
def byte_codes() -> Tensor:
    """Returns what each byte of a quantised scale stands for, ascending, float32.

    A sign, a decimal exponent told by leading zeros, and a fraction in the bits that remain.
    """
    values = [0.0, 1.0]
    for exponent in range(_EXPONENTS):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        fractions = (edges[:-1] + edges[1:]) / 2.0 * 10 ** (exponent + 1 - _EXPONENTS)
        values += [*fractions.tolist(), *(-fractions).tolist()]
    return torch.tensor(sorted(values), dtype=torch.float32)


def choose_halves(scaled: Tensor, kind: FourBitKind) -> Tensor:
    """Returns the nearest of the sixteen values for each, as its number, int64.

    Args:
        scaled: From −1 to 1, float32.
        kind: Which values.
    """
    codes = half_codes(kind)
    order = torch.argsort(codes)
    ascending = codes[order]
    chosen = torch.bucketize(scaled, (ascending[:-1] + ascending[1:]) / 2)
    return chosen if kind == "nf4" else order[chosen]


def scale_down(values: Tensor, scales: Tensor) -> Tensor:
    """Divides by the scale of each value, as bitsandbytes does: by its reciprocal, in float32."""
    return torch.clamp(values * (1.0 / scales.clamp(min=_LEAST_SCALE)), -1, 1)


def block_scales(values: Tensor) -> Tensor:
    """Returns the scales of blocks of consecutive values, float32.

    Args:
        values: Any shape; the last block may be a part of one.
    """
    return _blocks(values).abs().amax(dim=1)


def pack_halves(values: Tensor, scales: Tensor, kind: FourBitKind) -> Tensor:
    """Quantises consecutive values, two to a byte, the first one in the high half; uint8, flat.

    Args:
        values: Any shape, an even number of values; the last block may be a part of one.
        scales: Of their blocks, from `block_scales`.
        kind: Which sixteen values.
    """
    scaled = scale_down(_blocks(values), scales.view(-1, 1)).view(-1)[: values.numel()]
    halves = choose_halves(scaled, kind).to(torch.uint8)
    return halves[::2] << 4 | halves[1::2]


def round_halves(values: Tensor, kind: FourBitKind) -> Tensor:
    """Returns what quantised values stand for, where the scales are kept as they are; float32.

    Args:
        values: Any shape; the last block may be a part of one.
        kind: Which sixteen values.
    """
    grid = _blocks(values)
    scales = grid.abs().amax(dim=1, keepdim=True)
    rounded = half_codes(kind)[choose_halves(scale_down(grid, scales), kind)] * scales
    return rounded.view(-1)[: values.numel()].view(values.shape)


def _blocks(values: Tensor) -> Tensor:
    flat = values.flatten().float()
    rest = -len(flat) % FOUR_BIT_BLOCK
    return torch.nn.functional.pad(flat, (0, rest)).view(-1, FOUR_BIT_BLOCK)


def quantise_scales(scales: Tensor) -> ScaleCodes:
    """Quantises the scales of a whole tensor.

    Args:
        scales: Shape (blocks,), float32.
    """
    offset = scales.mean()
    rest = scales - offset
    blocks = -(-len(rest) // SCALES_BLOCK)
    padded = torch.zeros(blocks * SCALES_BLOCK, dtype=torch.float32)
    padded[: len(rest)] = rest
    grid = padded.view(blocks, SCALES_BLOCK)
    absmax = grid.abs().amax(dim=1)
    codes = byte_codes()
    scaled = scale_down(grid, absmax.view(-1, 1)).view(-1)[: len(rest)]
    chosen = torch.bucketize(scaled, (codes[:-1] + codes[1:]) / 2)
    return ScaleCodes(chosen.to(torch.uint8), absmax, offset)


def restore_scales(
    stored: Tensor, codes: Tensor, absmax: Tensor, block: int, offset: Tensor
) -> Tensor:
    """Returns scales out of eight bits, float32.

    Args:
        stored: One byte for each scale, uint8.
        codes: What each byte stands for.
        absmax: Of each block of scales.
        block: Scales in a block.
        offset: Added to every scale.
    """
    scales = codes[stored.long()]
    number = torch.arange(len(scales)).div_(block, rounding_mode="floor")
    return scales.mul_(absmax[number]).add_(offset)
