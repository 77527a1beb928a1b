"""Keys from configurations that leave things out, or say them the old way."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from gguf.utility import size_label as their_size_label

from packager.errors import InputError, UnsupportedFeatureError
from packager.gguf import (
    GeneralFacts,
    GgufKey,
    GgufTensor,
    architecture_keys,
    general_keys,
    sampling_keys,
    supported_architectures,
)
from packager.gguf.general import size_label
from tests.gguf.cases import CASES, sizes
from tests.gguf.conftest import Converted
from tests.gguf.reading import map_folder, read_config, read_keys, written

_MODEL_TYPES = {
    "Qwen2Moe": "qwen2_moe", "Qwen3Moe": "qwen3_moe", "Gemma3": "gemma3_text", "GPT2": "gpt2",
    "StableLm": "stablelm",
}  # fmt: skip
_OLD_FORMS = {
    "Llama": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 20000},
    "Qwen2": {"rope_scaling": {"type": "yarn", "factor": 4.0, "attn_factor": 0.5},
              "num_key_value_heads": None},
    "Mistral": {"head_dim": None, "rope_theta": 1e6},
    "Gemma3": {"rope_local_base_freq": 5000.0, "rope_theta": 2e6,
               "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "Phi3": {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 64,
             "max_position_embeddings": 512,
             "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 4,
                              "short_factor": [1.0] * 4}},
    "Phi": {"partial_rotary_factor": 0.25, "rope_theta": 5e4},
    "StableLm": {"partial_rotary_factor": 0.5, "use_parallel_residual": True},
    "Olmo2": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 2.0}},
}  # fmt: skip

_STATED = {"Qwen3Moe": {"norm_topk_prob": True}}
"""What a configuration has to say, as its default is not what llama.cpp computes."""


def keys_of(config: dict[str, Any]) -> dict[str, Any]:
    return written(architecture_keys(config))


@pytest.mark.parametrize("old", [False, True], ids=["sparse", "old"])
@pytest.mark.parametrize("name", sorted({case.name for case in CASES.values()}))
def test_defaults_are_those_of_transformers(name: str, old: bool) -> None:
    case = next(case for case in CASES.values() if case.name == name)
    needed = {
        key: value
        for key, value in sizes(case).items()
        if key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                   "n_embd", "n_layer", "n_head")
    }  # fmt: skip
    needed |= _STATED.get(name, {})
    sparse: dict[str, Any] = {**needed, **(_OLD_FORMS.get(name, {}) if old else {})}
    kind = _MODEL_TYPES.get(name, name.lower())
    whole = transformers.AutoConfig.for_model(kind, **_copy(sparse)).to_dict()
    classes = {"architectures": [case.model_class or f"{name}ForCausalLM"]}
    assert keys_of({**sparse, **classes}) == keys_of({**whole, **classes})


def test_composite_gemma3_has_the_keys_of_its_language_model() -> None:
    inner = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "sliding_window": 64, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner}
    keys = keys_of(config)
    assert keys == keys_of({**inner, "architectures": ["Gemma3ForCausalLM"]})
    assert keys["gemma3.rope.scaling.factor"] == (["FLOAT32"], 8.0)
    assert keys["gemma3.rope.freq_base_swa"] == (["FLOAT32"], 10000.0)
    assert keys["gemma3.attention.head_count"] == (["UINT32"], 8)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": 1 << 32}, "vocab_size"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor"),
        ({"rope_parameters": {"rope_theta": {}}}, "rope_theta"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0,
                           "original_max_position_embeddings": 0.5}},
         "original_max_position_embeddings"),
        ({"text_config": 3}, "text_config"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(change: dict[str, Any], where: str) -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, **change}
    with pytest.raises(InputError) as caught:
        architecture_keys({**config, "architectures": ["LlamaForCausalLM"]})
    assert caught.value.where == f"config.json: {where}"


@pytest.mark.parametrize("named", [["BertModel"], [], None, "LlamaForCausalLM", [["x"]]])
def test_unknown_architecture_names_both_ways_out(named: Any) -> None:
    with pytest.raises(UnsupportedFeatureError) as caught:
        architecture_keys({"architectures": named})
    assert "--target adapter" in caught.value.hint
    assert "--target merged" in caught.value.hint
    assert "--llama-cpp DIR" in caught.value.hint


def test_supported_architectures_hold_the_asked_families() -> None:
    asked = {f"{case.name}ForCausalLM" for case in CASES.values() if case.name != "GPT2"}
    assert asked | {"GPT2LMHeadModel"} <= set(supported_architectures())


def test_sampling_keys_and_size_are_those_of_the_converter(
    converted: dict[str, Converted],
) -> None:
    for name in ("llama", "mixtral", "qwen3-moe"):
        case = converted[name]
        theirs = read_keys(case.gguf)
        settings = read_config(case.model, "generation_config.json")
        assert settings["temperature"] == 0.6
        ours = written(sampling_keys(settings))
        assert ours == {k: v for k, v in theirs.items() if k.startswith("general.sampling.")}
        assert ours["general.sampling.penalty_repeat"][0] == ["FLOAT32"]
        assert size_label(map_folder(case.model).tensors) == theirs["general.size_label"][1]


@pytest.mark.parametrize("count", [999, 135_000_000, 999_999, 1_235_814_400, 7_000_000_000_000])
def test_size_label_rounds_as_the_converter(count: int) -> None:
    assert size_label([GgufTensor("x.weight", (count,))]) == their_size_label(count, count, 0, 0)


def test_wrong_sampling_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"sampling settings") as caught:
        sampling_keys({"temperature": 0.5, "top_k": "50"})
    assert caught.value.where == "generation_config.json: top_k"
    assert sampling_keys({"top_k": None, "do_sample": True}) == ()


def test_general_keys_tell_the_origin() -> None:
    facts = GeneralFacts(
        name="pirate", license="apache-2.0", base_repo="HuggingFaceTB/SmolLM2-135M",
        base_commit="a" * 40, base_digest="sha256:1", adapter_digest="sha256:2",
        languages=("en",),
    )  # fmt: skip
    keys = {key.name: key for key in general_keys(facts, [GgufTensor("x.weight", (3000, 1000))])}
    assert {name: key.value for name, key in keys.items()} == {
        "general.type": "model",
        "general.name": "pirate",
        "general.size_label": "3.0M",
        "general.license": "apache-2.0",
        "general.base_model.count": 1,
        "general.base_model.0.name": "SmolLM2-135M",
        "general.base_model.0.organization": "HuggingFaceTB",
        "general.base_model.0.version": "a" * 40,
        "general.base_model.0.repo_url": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M",
        "general.languages": ("en",),
        "lorapack.base.repo": "HuggingFaceTB/SmolLM2-135M",
        "lorapack.base.commit": "a" * 40,
        "lorapack.base.digest": "sha256:1",
        "lorapack.adapter.digest": "sha256:2",
    }
    assert keys["general.base_model.count"] == GgufKey("general.base_model.count", "uint32", 1)


def test_local_base_has_no_repository() -> None:
    keys = general_keys(GeneralFacts("pirate", base_digest="sha256:1"), [])
    names = {key.name for key in keys}
    assert "lorapack.base.digest" in names
    assert not any(name.startswith("general.base_model") for name in names)


def _copy(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: dict(v) if isinstance(v, dict) else v for k, v in settings.items()}
