"""fp8 and MXFP4 checkpoints against transformers' own dequantisation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from packager.base import read_base
from packager.errors import BaseError
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.values import open_values
from tests import models
from tests.quantisation.stored import edit_config, edit_tensors, read_values, scale_blocks

PROJECTIONS = "proj.weight"
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}


def write_fp8(out: Path, height: int = 32, width: int = 32, *, suffix: str = "_scale_inv") -> Path:
    """A base whose projections lie in fp8 with a scale for each block."""
    models.make_llama(out, hidden=64, tied=False)
    changes: dict[str, Tensor | None] = {}
    for name, weight in load_file(out / "model.safetensors").items():
        if name.endswith(PROJECTIONS):
            floats, scales = scale_blocks(weight, height, width)
            changes |= {name: floats, f"{name}{suffix}": scales}
    edit_tensors(out, changes)
    edit_config(out, quantization_config=FP8)
    return out


def test_fp8_is_read_as_transformers_loads_it(tmp_path: Path) -> None:
    base = write_fp8(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    wanted = model.state_dict()
    values = read_values(base)
    assert values.keys() == wanted.keys()
    for name, found in values.items():
        assert torch.equal(found.float(), wanted[name]), name
    index = read_base(base)
    assert index.quantised_count == 14
    assert index.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"


def test_fp8_blocks_at_the_edges_are_smaller(tmp_path: Path) -> None:
    """As DeepSeek's 576 rows in blocks of 128, which transformers does not load."""
    base = write_fp8(tmp_path / "base", 48, 24)
    edit_config(base, quantization_config={**FP8, "weight_block_size": [48, 24]})
    stored = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    scales = stored[f"{name}_scale_inv"]
    assert scales.shape == (2, 6)
    grown = scales.repeat_interleave(48, 0)[:64].repeat_interleave(24, 1)[:, :128]
    assert torch.equal(read_values(base)[name], stored[name].float() * grown)


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.uint8])
def test_scales_that_are_powers_of_two(tmp_path: Path, dtype: torch.dtype) -> None:
    base = write_fp8(tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    bytes_of = {name: scales.to(torch.float8_e8m0fnu).view(torch.uint8)
                for name, scales in stored.items() if name.endswith("_scale_inv")}  # fmt: skip
    edit_tensors(base, {name: scales.view(dtype) for name, scales in bytes_of.items()})
    values = read_values(base)
    for name, scales in bytes_of.items():
        weight = name.removesuffix("_scale_inv")
        wanted = Fp8Dequantize(None)._dequantize_one(stored[weight], scales, torch.float32)
        assert torch.equal(values[weight], wanted), name


def test_stacked_experts_in_fp8(tmp_path: Path) -> None:
    base = write_fp8(tmp_path / "base")
    parts = [scale_blocks(torch.randn(64, 96), 32, 32) for _ in range(3)]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    floats, scales = (torch.stack([part[side] for part in parts]) for side in (0, 1))
    edit_tensors(base, {name: floats, f"{name}_scale_inv": scales})
    wanted = Fp8Dequantize(None)._dequantize_one(floats, scales, torch.float32)
    assert torch.equal(read_values(base)[name], wanted)
    ref = read_base(base).tensors[name]
    assert isinstance(ref, QuantisedRef)
    assert torch.equal(open_values(ref).read(60, 10), wanted.view(-1, 96)[60:70])


def compressed(strategy: str, **weights: object) -> dict[str, object]:
    fields = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, **weights}
    group = {"targets": ["Linear"], "weights": fields}
    return {"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": group}}  # fmt: skip


@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_compressed_tensors_in_fp8(tmp_path: Path, strategy: str) -> None:
    shapes = {"tensor": (10**6, 10**6), "channel": (1, 10**6), "block": (32, 16)}
    base = write_fp8(tmp_path / "base", *shapes[strategy], suffix="_scale")
    weights = {"block_structure": [32, 16]} if strategy == "block" else {}
    edit_config(base, quantization_config=compressed(strategy, **weights))
    stored = load_file(base / "model.safetensors")
    edit_tensors(base, {f"{name.removesuffix('.weight')}.input_scale": torch.ones(1)
                        for name in stored if name.endswith(PROJECTIONS)})  # fmt: skip
    values = read_values(base)
    assert not [name for name in values if "scale" in name]
    for name, weight in stored.items():
        if name.endswith(PROJECTIONS):
            scales = stored[f"{name}_scale"]
            wanted = Fp8Dequantize(None)._dequantize_one(weight, scales, torch.float32)
            assert torch.equal(values[name], wanted), name


def test_mxfp4_is_read_as_transformers_loads_it(gpt_oss: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gpt_oss, dtype=torch.float32, local_files_only=True
    )
    wanted = model.state_dict()
    values = read_values(gpt_oss)
    assert values.keys() == wanted.keys()
    for name, found in values.items():
        assert torch.equal(found.float(), wanted[name]), name
    assert read_base(gpt_oss).quantised_count == 4


def test_any_rows_of_mxfp4(gpt_oss: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"
    ref = read_base(gpt_oss).tensors[name]
    assert isinstance(ref, QuantisedRef)
    assert ref.shape == (4, 64, 192)
    stored = load_file(gpt_oss / "model.safetensors")
    blocks, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).view(-1, 192)
    opened = open_values(ref)
    for first, count in ((0, 1), (31, 2), (60, 10), (37, 150)):
        assert torch.equal(opened.read(first, count), wanted[first : first + count])


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "such-a-method"}, "such-a-method"),
        ({"bits": 3}, "unnamed"),
        (compressed("tensor", num_bits=4), "in 4 bits"),
        (compressed("group"), "group"),
        ({**compressed("tensor"), "format": "pack-quantized"}, "pack-quantized"),
    ],
)
def test_other_methods_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], found: str
) -> None:
    from packager.quantisation.scheme import check_scheme

    problem = check_scheme({"quantization_config": changes}, tmp_path)
    assert problem is not None
    assert found in f"{problem.what} {problem.found}"
    assert "16-bit original" in problem.hint


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = write_fp8(tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(base, {f"{name}_scale_inv": torch.ones(3, 2)})
    with pytest.raises(BaseError, match="does not fit") as caught:
        read_base(base)
    assert "(3, 2)" in caught.value.found
    edit_tensors(base, {f"{name}_scale_inv": None})
    with pytest.raises(BaseError, match="does not fit"):
        read_base(base)


def test_states_that_lie_are_refused(tmp_path: Path) -> None:
    """What a stranger writes beside a weight in four bits."""
    from packager.quantisation.state import parse_state

    good = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 8]}
    assert parse_state(json.dumps(good).encode(), where="x").shape == (8, 8)
    for change in (
        {"shape": None}, {"shape": [8, -8]}, {"shape": [1 << 50]}, {"shape": [True]},
        {"dtype": "int8"}, {"quant_type": "int3"}, {"blocksize": 1}, {"blocksize": 10**9},
        {"nested_blocksize": 256}, {"nested_blocksize": 256, "nested_offset": "0"},
    ):  # fmt: skip
        with pytest.raises(BaseError, match="not described"):
            parse_state(json.dumps({**good, **change}).encode(), where="x")
