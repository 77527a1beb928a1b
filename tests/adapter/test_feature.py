"""Every feature of an adapter is named, known or not, and no target takes one that it loses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from peft import LoraConfig, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from packager.adapter import Feature, find_features, parse_adapter_config
from packager.adapter.support import TARGETS

# Field → (a value that a trainer may set, the feature that it makes). Every field of LoraConfig
# stands here or in `KEEPS_THE_FUNCTION`; a new one of PEFT's fails until it is looked at.
CHANGES: dict[str, tuple[Any, str]] = {
    "use_rslora": (True, "rslora"),
    "rank_pattern": ({"q_proj": 8}, "rank_pattern"),
    "alpha_pattern": ({"q_proj": 8}, "alpha_pattern"),
    "layers_to_transform": ([0], "layers_to_transform"),
    "exclude_modules": (["lm_head"], "exclude_modules"),
    "target_modules": (r".*\.q_proj", "regex target_modules"),
    "use_dora": (True, "dora"),
    "modules_to_save": (["lm_head"], "modules_to_save"),
    "trainable_token_indices": ([1, 2], "trainable_token_indices"),
    "bias": ("lora_only", "bias"),
    "lora_bias": (True, "lora_bias"),
    "fan_in_fan_out": (True, "fan_in_fan_out"),
    "target_parameters": (["mlp.experts.down_proj"], "target_parameters"),
    "layer_replication": ([[0, 2], [1, 3]], "layer_replication"),
    "init_lora_weights": ("pissa_niter_4", "init_lora_weights"),
    "alora_invocation_tokens": ([5, 6], "alora"),
    "use_qalora": (True, "qalora"),
    "use_bdlora": ({"nblocks": 2}, "bdlora"),
    "arrow_config": ({"top_k": 2}, "arrow"),
    "kasa_config": ({"beta": 0.1}, "kasa"),
    "velora_config": ({"num_groups": 2}, "velora"),
    "monteclora_config": ({"num_samples": 2}, "monteclora"),
    "megatron_config": ({"hidden_size": 8}, "megatron"),
    "ensure_weight_tying": (True, "ensure_weight_tying"),
}
KEEPS_THE_FUNCTION: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "peft_version": "0.21.2",
    "base_model_name_or_path": "org/base",
    "revision": "main",
    "inference_mode": True,
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "layers_pattern": "layers",
    "megatron_core": "megatron.core",
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {"direction": "ArBr"},
    "qalora_group_size": 16,
    "runtime_config": {"ephemeral_gpu_offload": False},
}
MERGED_NOW = {
    "rslora", "rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules",
    "regex target_modules", "fan_in_fan_out", "dora", "modules_to_save", "bias", "lora_bias",
    "trainable_token_indices", "target_parameters", "layer_replication", "bdlora", "velora",
    "monteclora", "ensure_weight_tying", "kasa",
}  # fmt: skip


def features_of(**fields: Any) -> tuple[Feature, ...]:
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **fields}
    return find_features(parse_adapter_config(raw, where="x"))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LoraConfig)])
def test_every_field_of_peft_is_a_feature_or_keeps_the_function(field: str) -> None:
    if field in KEEPS_THE_FUNCTION:
        assert [item.name for item in features_of(**{field: KEEPS_THE_FUNCTION[field]})] == ["lora"]
        return
    value, name = CHANGES[field]
    lora, feature = features_of(**{field: value})
    assert (lora.name, feature.name) == ("lora", name)
    assert feature.detail
    merged = "works" if name in MERGED_NOW else "not possible"
    assert feature.support["merged"].status == merged
    assert set(feature.support) == set(TARGETS)
    assert all(support.reason for support in feature.support.values())


def test_a_fresh_config_of_peft_is_plain_lora() -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    raw = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    found = find_features(parse_adapter_config(raw, where="x"))
    assert [(item.name, item.detail) for item in found] == [("lora", "rank 4, alpha 8")]


@pytest.mark.parametrize(
    ("value", "changes_the_base"),
    [
        (True, False), (False, False), ("gaussian", False), ("orthogonal", False), ("eva", False),
        ("mica", False), (None, False), ("pissa", True), ("pissa_niter_16", True), ("olora", True),
        ("corda", True), ("loftq", True), ("lora_ga", True), ("something_new", True),
    ],
)  # fmt: skip
def test_an_initialisation_that_changed_the_base_is_named(
    value: Any, changes_the_base: bool
) -> None:
    names = [item.name for item in features_of(init_lora_weights=value)]
    assert ("init_lora_weights" in names) is changes_the_base


@pytest.mark.parametrize("value", [1, "on", [1], {"a": 1}, True])
def test_an_unknown_field_with_a_value_is_named_and_not_merged(value: Any) -> None:
    lora, feature = features_of(use_something_new=value)
    assert (lora.name, feature.name) == ("lora", "use_something_new")
    assert {name: item.status for name, item in feature.support.items()} == {
        "adapter": "works", "merged": "not possible", "ollama": "not possible",
        "gguf-adapter": "not possible", "vllm": "not possible",
    }  # fmt: skip


@pytest.mark.parametrize("value", [None, False, [], {}, "", 0])
def test_an_unknown_field_that_is_off_is_passed_over(value: Any) -> None:
    assert [item.name for item in features_of(use_something_new=value)] == ["lora"]


@pytest.mark.parametrize(
    "peft_type", [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value != "LORA"]
)
def test_every_other_tuner_is_named_and_kept_as_an_adapter(peft_type: str) -> None:
    config = parse_adapter_config({"peft_type": peft_type, "num_virtual_tokens": 8}, where="x")
    (feature,) = find_features(config)
    assert feature.name == peft_type.lower()
    assert feature.support["adapter"].status == "works"
    # Which of them PEFT merges, tests of the tuners ask PEFT; prompts change no weights.
    trains_prompts = issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type], PromptLearningConfig)
    statuses = ("not possible",) if trains_prompts else ("works", "not possible")
    assert feature.support["merged"].status in statuses
    assert feature.support["merged"].reason
    assert feature.support["vllm"].status == "merge-only"


def test_a_long_value_is_shortened() -> None:
    (_, feature) = features_of(modules_to_save=[f"module_{number}" for number in range(99)])
    assert len(feature.detail) <= 60
    assert feature.detail.endswith("…")
