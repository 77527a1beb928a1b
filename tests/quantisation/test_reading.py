"""Values of quantised checkpoints against the programs that read them otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from packager.base import read_base
from packager.quantisation.blockwise import byte_codes, half_codes
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.values import open_values
from tests import models
from tests.quantisation.stored import quantise_base, read_values

FOUR_BIT = [
    {"bnb_4bit_quant_type": "nf4"},
    {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    {"bnb_4bit_quant_type": "fp4"},
    {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    {"bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16"},
]


@pytest.fixture(scope="module", params=[64, 48])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose rows fill blocks of 64 values, and one whose rows do not."""
    folder = tmp_path_factory.mktemp("plain")
    return models.make_llama(folder / "base", hidden=request.param, tied=False)


def dequantise(packed: Tensor, state: bnb.QuantState) -> Tensor:
    """As bitsandbytes does, in float32.

    Its kernel for processors (0.50) takes wrong scales where rows do not fill blocks; the code
    that it uses elsewhere does not.
    """
    if state.shape[1] % state.blocksize == 0:
        return bnb.dequantize_4bit(packed, replace_dtype(state))
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    flat = packed.view(torch.uint8).reshape(-1)
    shape, size = state.shape, state.blocksize
    return _dequantize_4bit_compute(flat, scales, state.code, size, shape, torch.float32)


def replace_dtype(state: bnb.QuantState) -> bnb.QuantState:
    state.dtype = torch.float32
    return state


@pytest.mark.parametrize("settings", FOUR_BIT)
def test_four_bits_are_read_as_bitsandbytes_reads_them(
    plain: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    base = quantise_base(plain, tmp_path / "base", load_in_4bit=True, **settings)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    values = read_values(base)
    assert values.keys() == load_file(plain / "model.safetensors").keys()
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            wanted = dequantise(module.weight.data, module.weight.quant_state)
            assert torch.equal(values[f"{name}.weight"], wanted), name
    index = read_base(base)
    quantised = {name for name, ref in index.tensors.items() if isinstance(ref, QuantisedRef)}
    assert len(quantised) == 14
    assert {index.tensors[name].dtype for name in quantised} == {"BF16"}
    head = load_file(plain / "model.safetensors")["lm_head.weight"]
    assert torch.equal(values["lm_head.weight"], head)


def test_eight_bits_are_read_as_bitsandbytes_reads_them(plain: Path, tmp_path: Path) -> None:
    base = quantise_base(plain, tmp_path / "base", load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    values = read_values(base)
    assert values.keys() == load_file(plain / "model.safetensors").keys()
    count = 0
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear8bitLt":
            wanted = bnb.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
            assert torch.equal(values[f"{name}.weight"], wanted), name
            count += 1
    assert count == 14


def test_any_rows_are_those_of_the_whole(plain: Path, tmp_path: Path) -> None:
    """Rows of 48 values end within blocks of 64, and 7 rows within a byte's neighbours."""
    base = quantise_base(plain, tmp_path / "base", load_in_4bit=True, bnb_4bit_quant_type="nf4")
    ref = read_base(base).tensors["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(ref, QuantisedRef)
    opened = open_values(ref)
    whole = opened.read(0, ref.shape[0])
    for first, count in ((0, 1), (5, 7), (47, 1), (3, 0)):
        assert torch.equal(opened.read(first, count), whole[first : first + count])


def test_tables_are_those_of_bitsandbytes() -> None:
    assert torch.equal(byte_codes(), bnb.create_dynamic_map())
    assert torch.equal(half_codes("nf4"), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(half_codes("fp4"), bnb.get_4bit_type("fp4", device="cpu"))
