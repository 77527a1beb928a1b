"""LoftQ: the base is as bitsandbytes rounds it, and the adapter comes on top of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_quant, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from packager.errors import RejectedPlanError
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.folders import pair, write_adapter
from tests.merge import merged as oracle
from tests.merge.conftest import load, read_tensors

MakeBase = Callable[[str, bool, bool], Path]
MODULES = ("q_proj", "down_proj")


def round_by_bitsandbytes(weight: Tensor, bits: int) -> Tensor:
    """The weight as LoftQ's first step leaves it: quantised from float32, and back."""
    if bits == 4:
        return dequantize_4bit(*quantize_4bit(weight.float(), quant_type="nf4"))
    numbers, scales, _ = int8_vectorwise_quant(weight.half())
    return numbers.float() * scales.view(-1, 1) * 7.874015718698502e-3


def round_model(base: Path, bits: int) -> Any:
    """The model that LoftQ trains on; PEFT itself makes it on a GPU only."""
    model = load(base)
    for name, module in model.named_modules():
        if name.endswith(MODULES):
            module.weight.data = round_by_bitsandbytes(module.weight.data, bits)
    return model


def write_loftq(base: Path, out: Path, bits: int) -> Path:
    """Saves an adapter as LoftQ leaves it, trained on the rounded model."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=list(MODULES), task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tuned = get_peft_model(round_model(base, bits), config)
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data = torch.randn_like(weight) * 0.15
    tuned.save_pretrained(out)
    path = out / "adapter_config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    settings = {"loftq_bits": bits, "loftq_iter": 1}
    stated |= {"init_lora_weights": "loftq", "loftq_config": settings}
    path.write_text(json.dumps(stated), encoding="utf-8")
    return out


@pytest.mark.parametrize(("bits", "dtype"), [(4, "float32"), (4, "bfloat16"), (8, "float32")])
def test_an_adapter_is_merged_onto_the_rounded_weights(
    make_base: MakeBase, tmp_path: Path, bits: int, dtype: str
) -> None:
    base = make_base(dtype, False, False)
    adapter = write_loftq(base, tmp_path / "a", bits)
    request = ReleaseRequest(
        adapters=(("a", adapter),),
        out=tmp_path / "out",
        base=str(base),
        options=ReleaseOptions(targets=("merged",)),
    )
    made = release(request, Silent())
    proof = made.proof.targets[0]
    assert proof.weights is not None
    assert "loftq+lora" in proof.weights.by_rule
    assert proof.behaviour is not None
    assert not proof.problems
    plain = LoraConfig(r=4, lora_alpha=6, target_modules=list(MODULES), task_type="CAUSAL_LM")
    tuned = PeftModel.from_pretrained(round_model(base, bits), adapter, config=plain).double()
    truth = tuned.merge_and_unload().state_dict()
    unit = {"float32": 2.0**-24, "bfloat16": 2.0**-8}[dtype]
    found, before = read_tensors(made.bundle / "merged/a"), read_tensors(base)
    changed = 0
    for name, value in found.items():
        error = (value.double() - truth[name]).abs()
        slack = 1.001 * unit * truth[name].abs() + 2.0**-22 * truth[name].abs().max()
        assert bool((error <= slack).all()), name
        changed += not torch.equal(value, before[name])
    assert changed == 2 * len(MODULES)


def test_iterations_that_no_other_machine_repeats_are_refused(
    make_base: MakeBase, tmp_path: Path
) -> None:
    shapes = pair("model.layers.0.self_attn.q_proj", width=64, height=64)
    adapter = write_adapter(
        tmp_path / "a", shapes, target_modules=["layers.0.self_attn.q_proj"],
        init_lora_weights="loftq", loftq_config={"loftq_bits": 4, "loftq_iter": 5},
    )  # fmt: skip
    with pytest.raises(RejectedPlanError, match="in several iterations") as caught:
        oracle.merge(make_base("float32", False, False), adapter, tmp_path / "out")
    assert "set init_lora_weights to true" in str(caught.value)
    assert not (tmp_path / "out").exists()
