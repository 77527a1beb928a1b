"""Scales in eight bits against both of bitsandbytes' kernels for processors.

One takes the nearest of the 256 values, as its kernel for GPUs does; the other one, for float32,
looks a value up in a table of 65,536 places, whose places at the border of two values are rounded.
"""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional
from torch import Tensor

from packager.quantisation.blockwise import byte_codes, quantise_scales

PLACES = 1 << 16


def make_scales(seed: int) -> Tensor:
    """The largest of 64 normal values each, as the scales of a weight are; a part of a block."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(256 * 90 + 33, 64, generator=random).abs().amax(dim=1) * 0.02


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_those_of_the_exact_kernel(seed: int) -> None:
    scales = make_scales(seed)
    ours = quantise_scales(scales)
    rest = scales - scales.mean()
    # Its kernel for types without a table. Source: bitsandbytes 0.50, backends/cpu/ops.py.
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(rest.double(), byte_codes(), 256)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.absmax, absmax)
    assert torch.equal(ours.offset, scales.mean())


@pytest.mark.parametrize("seed", range(3))
def test_its_table_is_all_that_differs_on_a_processor(seed: int) -> None:
    scales = make_scales(seed)
    ours = quantise_scales(scales)
    theirs, state = functional.quantize_blockwise(scales - scales.mean(), blocksize=256)
    assert torch.equal(state.code, byte_codes())
    assert torch.equal(state.absmax, ours.absmax)
    differs = theirs != ours.codes
    assert 0 < float(differs.float().mean()) < 0.01
    assert int((theirs.int() - ours.codes.int()).abs().max()) == 1
    # Those that differ lie within half a place of the table of the border between both values.
    scaled = (scales - scales.mean()) / ours.absmax.repeat_interleave(256)[: len(scales)]
    lower = torch.minimum(theirs, ours.codes)[differs].long()
    border = (byte_codes()[lower] + byte_codes()[lower + 1]) / 2
    assert float((scaled[differs] - border).abs().max()) <= 1.01 / (PLACES - 1)
