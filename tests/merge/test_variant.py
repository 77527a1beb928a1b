"""Variants of LoRA that are low-rank after training, and layers that stand there twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig

from packager.errors import RejectedPlanError
from tests.folders import pair, write_adapter
from tests.merge import merged as oracle

MakeBase = Callable[[str, bool, bool], Path]

VARIANTS: dict[str, dict[str, Any]] = {
    "bdlora": {
        "target_modules": ["q_proj", "o_proj", "k_proj"],
        "use_bdlora": BdLoraConfig(
            target_modules_bd_a=["o_proj"],
            target_modules_bd_b=["q_proj"],
            nblocks=2,
            match_strict=False,
        ),
    },
    "velora": {"target_modules": ["q_proj"], "velora_config": VeloraConfig()},
    "monteclora": {"target_modules": ["q_proj"], "monteclora_config": MontecloraConfig()},
    "olora": {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "olora"},
    "pissa": {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "pissa"},
    "pissa with dora": {
        "target_modules": ["v_proj"],
        "init_lora_weights": "pissa",
        "use_dora": True,
    },
    "kasa": {"target_modules": ["q_proj", "up_proj"], "kasa_config": KasaConfig()},
    "mica": {"target_modules": ["q_proj"], "init_lora_weights": "mica"},
}


RESIDUALS = ("olora", "pissa", "pissa with dora", "kasa")
"""PEFT works out in float32 what they take out of the base."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_merged_as_peft_does(make_base: MakeBase, tmp_path: Path, name: str) -> None:
    base = make_base("float32", False, True)
    adapter = oracle.write_adapter(base, tmp_path / "a", **VARIANTS[name])
    merged = oracle.merge(base, adapter, tmp_path / "out")
    inexact = 5e-6 if name in RESIDUALS else 0.0
    changed = oracle.check_tensors(merged, inexact=inexact)
    assert len(changed) == 2 * len(VARIANTS[name]["target_modules"])
    oracle.check_logits(merged)


def test_an_adapter_that_was_saved_converted_is_plain_lora(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("float32", False, True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LoraConfig(
            r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights="pissa_niter_4",
            task_type="CAUSAL_LM",
        )  # fmt: skip
        tuned = get_peft_model(oracle.load(base), config)
        tuned.peft_config["default"].init_lora_weights = True
        tuned.save_pretrained(tmp_path / "start")
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data.add_(torch.randn_like(weight) * 0.15)
        tuned.save_pretrained(
            tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    merged = oracle.merge(base, tmp_path / "a", tmp_path / "out")
    assert len(oracle.check_tensors(merged)) == 2
    oracle.check_logits(merged)


@pytest.mark.parametrize("sharded", [False, True])
def test_layers_that_stand_there_again(make_base: MakeBase, tmp_path: Path, sharded: bool) -> None:
    base = make_base("float32", sharded, True)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["q_proj", "down_proj"],
        layer_replication=[[0, 2], [1, 2], [0, 1]], modules_to_save=["norm"],
    )  # fmt: skip
    merged = oracle.merge(base, adapter, tmp_path / "out")
    assert merged.config["num_hidden_layers"] == 4
    found = oracle.read_tensors(merged.folder)
    assert {int(name.split(".")[2]) for name in found if ".layers." in name} == {0, 1, 2, 3}
    oracle.check_logits(merged)
    oracle.check_tensors(merged)


@pytest.mark.parametrize("ranges", [[[0, 3]], [[0, 2], ["1", 2]], "0-2", [[2, 1]]])
def test_layers_that_the_base_has_not_are_refused(
    make_base: MakeBase, tmp_path: Path, ranges: Any
) -> None:
    base = make_base("float32", False, True)
    shapes = pair("model.layers.0.self_attn.q_proj", width=64, height=64)
    adapter = write_adapter(tmp_path / "a", shapes, layer_replication=ranges)
    with pytest.raises(RejectedPlanError, match="names layers that the base does not have"):
        oracle.merge(base, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "which no weights can tell"),
        ({"arrow_config": {"top_k": 2}}, "routed to other adapters"),
        ({"use_qalora": True}, "GPTQ"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
    ],
)
def test_what_has_no_exact_merge_says_why(
    make_base: MakeBase, tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    base = make_base("float32", False, True)
    shapes = pair("model.layers.0.self_attn.q_proj", width=64, height=64)
    adapter = write_adapter(tmp_path / "a", shapes, layers_to_transform=[0], **config)
    with pytest.raises(RejectedPlanError, match=why):
        oracle.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
