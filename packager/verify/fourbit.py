"""Level `weights` of a model in bitsandbytes' four bits: recomputed from base + adapter.

The scale of a block has to be its largest value, and each stored value the nearest of the sixteen
to the truth, in float64; between two that are as near, rounding may decide.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from packager.merge import RowUpdate, bound_error
from packager.plan import PlannedTensor
from packager.quantisation.blockwise import half_codes
from packager.quantisation.encoding import FOUR_BIT_BLOCK
from packager.rowreader import as_matrix, read_rows
from packager.tensorfile import TensorRef

_BLOCK_ELEMENTS = 1 << 17
_FLOAT32 = 2.0**-24
_UNIT = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
_LEAST = 1e-30


def find_wrong_values(
    tensor: PlannedTensor, stored: TensorRef, ref: TensorRef, updates: tuple[RowUpdate, ...]
) -> str:
    """Recomputes one weight; returns what is wrong with it, or an empty text.

    Args:
        tensor: The weight, with the type that it has before it is quantised.
        stored: The weight in the artefact.
        ref: What its rows start from.
        updates: Of the weight, in float64.

    Raises:
        InputError: A file cannot be read.
    """
    before, after = as_matrix(ref), as_matrix(stored)
    rows, width = before.shape
    whole = FOUR_BIT_BLOCK // math.gcd(width, FOUR_BIT_BLOCK)
    step = max(1, _BLOCK_ELEMENTS // max(1, width * whole)) * whole
    for first in range(0, rows, step):
        count = min(step, rows - first)
        base = read_rows(before, first, count).double()
        truth = base.clone()
        for update in updates:
            update.apply(truth, first)
        slack = bound_error(base, updates, first, _FLOAT32) if updates else torch.zeros_like(base)
        slack = slack + truth.abs() * _UNIT[tensor.dtype]
        wrong = _wrong(truth, slack, read_rows(after, first, count).double())
        if bool(wrong.any()):
            row = first + int(wrong.view(count, width).any(dim=1).nonzero()[0])
            return f"{tensor.name} is not base + adapter in four bits, first in row {row}"
    return ""


def _wrong(truth: Tensor, slack: Tensor, found: Tensor) -> Tensor:
    """Tells which values are neither the nearest nor as near, flat."""
    values, error, stored = (_grid(part) for part in (truth, slack, found))
    scale = stored.abs().amax(dim=1, keepdim=True)
    off = (scale - values.abs().amax(dim=1, keepdim=True)).abs()
    wrong_scale = off > error.amax(dim=1, keepdim=True) * (1 + 1e-6) + _LEAST
    unit = scale.clamp(min=_LEAST)
    codes = half_codes("nf4").double()
    scaled = values / unit
    upper = torch.bucketize(scaled, codes).clamp(max=len(codes) - 1)
    lower = (upper - 1).clamp(min=0)
    nearest = torch.minimum((codes[upper] - scaled).abs(), (codes[lower] - scaled).abs())
    # The scale that values were divided by is off as the largest value is.
    doubt = (error + scaled.abs() * off) / unit + 1e-6
    wrong = (stored / unit - scaled).abs() > nearest + 2 * doubt
    return (wrong | wrong_scale).flatten()[: truth.numel()]


def _grid(values: Tensor) -> Tensor:
    """Lays values out in blocks; the last one is filled up with zeros."""
    flat = values.flatten()
    rest = -len(flat) % FOUR_BIT_BLOCK
    return torch.nn.functional.pad(flat, (0, rest)).view(-1, FOUR_BIT_BLOCK)
