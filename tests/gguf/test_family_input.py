"""Models that hold more, less or other things than their family's usual ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packager.errors import BaseError, InputError, UnsupportedFeatureError
from packager.gguf import GgufModel, GgufTensor, map_model
from packager.gguf.mapping import architecture_keys
from tests.gguf.conftest import Converted
from tests.gguf.reading import map_folder, read_config, read_shapes


def map_changed(
    folder: Path, shapes: dict[str, tuple[int, ...] | None], **settings: Any
) -> GgufModel:
    """Maps a model some of whose shapes or settings are others; None removes a tensor."""
    changed = {**read_shapes(folder), **shapes}
    kept = {name: shape for name, shape in changed.items() if shape is not None}
    return map_model({**read_config(folder), **settings}, kept)


def test_untied_head_becomes_the_output(converted: dict[str, Converted]) -> None:
    folder = converted["llama-tied"].model
    embedding = read_shapes(folder)["model.embed_tokens.weight"]
    assert not any(tensor.name == "output.weight" for tensor in map_changed(folder, {}).tensors)
    untied = map_changed(folder, {"lm_head.weight": embedding}, tie_word_embeddings=False)
    head = GgufTensor("output.weight", embedding, ("lm_head.weight",))
    assert head in untied.tensors
    assert not untied.dropped


def test_head_that_llama_cpp_does_not_read_is_dropped_or_refused(
    converted: dict[str, Converted],
) -> None:
    folder = converted["gemma2"].model
    head: dict[str, Any] = {"lm_head.weight": read_shapes(folder)["model.embed_tokens.weight"]}
    assert map_changed(folder, head, tie_word_embeddings=True).dropped == ("lm_head.weight",)
    with pytest.raises(UnsupportedFeatureError, match="no output head") as caught:
        map_changed(folder, head, tie_word_embeddings=False)
    assert caught.value.where == "lm_head.weight"


def test_masks_and_rotary_tables_are_dropped(converted: dict[str, Converted]) -> None:
    extra: dict[str, Any] = {"h.0.attn.bias": (1, 1, 512, 512), "h.1.attn.masked_bias": ()}
    folder = converted["gpt2"].model
    plain = {name.removeprefix("transformer."): s for name, s in read_shapes(folder).items()}
    model = map_model(read_config(folder), {**plain, **extra})
    assert model.dropped == tuple(extra)
    assert [each.name for each in model.tensors] == [
        each.name for each in map_folder(folder).tensors
    ]
    rotary = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert map_changed(converted["llama-2"].model, {rotary: (8,)}).dropped == (rotary,)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("language_model.model.", "language_model.lm_head."),
        ("model.language_model.", "lm_head."),
    ],
)
def test_composite_gemma3_is_mapped_without_its_vision(
    prefix: str, head: str, converted: dict[str, Converted]
) -> None:
    folder = converted["gemma3-untied"].model
    inner = read_config(folder)
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {key: value for key, value in inner.items() if key != "architectures"},
    }
    shapes = {}
    for name, shape in read_shapes(folder).items():
        shapes[name.replace("model.", prefix, 1).replace("lm_head.", head, 1)] = shape
    vision: dict[str, Any] = {
        "vision_tower.vision_model.head.weight": (4, 4),
        "model.multi_modal_projector.mm_soft_emb_norm.weight": (4,),
    }
    model = map_model(config, {**shapes, **vision})
    ours, theirs = model.tensors, map_folder(folder).tensors
    assert [(each.name, each.shape, each.transform) for each in ours] == [
        (each.name, each.shape, each.transform) for each in theirs
    ]
    assert model.dropped == tuple(vision)
    assert model.keys == map_folder(folder).keys


def test_norms_of_each_head_are_stacked(converted: dict[str, Converted]) -> None:
    # llama.cpp 0c1e57098 reads these, but its converter loses them: it returns from a generator.
    norms: dict[str, Any] = {
        f"model.layers.{layer}.self_attn.{part}_layernorm.norms.{head}.weight": (16,)
        for layer in range(2)
        for part, heads in (("q", 4), ("k", 2))
        for head in range(heads)
    }
    model = map_changed(converted["stablelm"].model, norms)
    found = {each.name: each for each in model.tensors}
    assert found["blk.1.attn_q_norm.weight"].shape == (4, 16)
    assert found["blk.1.attn_k_norm.weight"].sources == tuple(
        f"model.layers.1.self_attn.k_layernorm.norms.{head}.weight" for head in range(2)
    )


def test_experts_are_stacked_in_order_of_their_numbers() -> None:
    config = {
        "architectures": ["MixtralForCausalLM"], "hidden_size": 8, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 5,
        "num_local_experts": 11, "intermediate_size": 6,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (8,)}
    shapes["model.embed_tokens.weight"] = (5, 8)
    for number in sorted(range(11), key=str):
        for member, shape in (("w1", (6, 8)), ("w2", (8, 6)), ("w3", (6, 8))):
            name = f"model.layers.0.block_sparse_moe.experts.{number}.{member}.weight"
            shapes[name] = shape
    model = map_model(config, shapes)
    down = next(each for each in model.tensors if each.name == "blk.0.ffn_down_exps.weight")
    assert down.shape == (11, 8, 6)
    assert down.sources[10] == "model.layers.0.block_sparse_moe.experts.10.w2.weight"
    assert model.experts == 11
    del shapes["model.layers.0.block_sparse_moe.experts.7.w2.weight"]
    with pytest.raises(BaseError, match="incomplete"):
        map_model(config, shapes)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight_scale", (64,), "a name of this architecture"),
        ("model.layers.0.self_attn.extra.weight", (64,), "a name of this architecture"),
        ("model.layers.2.mlp.up_proj.weight", (96, 64), "layers 0 to 1"),
        ("model.layers.99999999999.mlp.up_proj.weight", (96, 64), "a name of this architecture"),
        ("score.weight", (2, 64), "a name of this architecture"),
        ("model.layers.01.mlp.up_proj.weight", (96, 64), "one tensor for blk.1.ffn_up.weight"),
    ],
)
def test_left_over_tensor_is_an_error(
    name: str, shape: tuple[int, ...], expected: str, converted: dict[str, Converted]
) -> None:
    with pytest.raises(BaseError, match="no place in a GGUF") as caught:
        map_changed(converted["llama-2"].model, {name: shape})
    assert caught.value.where == name
    assert caught.value.expected.startswith(expected)
    assert "--llama-cpp DIR" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("model.norm.weight", None, "incomplete"),
        ("model.embed_tokens.weight", None, "incomplete"),
        ("model.embed_tokens.weight", (9, 64), "shape"),
        ("model.embed_tokens.weight", (), "shape"),
        ("model.layers.0.self_attn.k_proj.weight", (30, 64), "shape"),
        ("model.layers.0.self_attn.q_proj.weight", (), "shape"),
    ],
)
def test_missing_or_misshapen_tensor_is_an_error(
    name: str, shape: tuple[int, ...] | None, what: str, converted: dict[str, Converted]
) -> None:
    with pytest.raises(BaseError, match=what):
        map_changed(converted["llama-2"].model, {name: shape})


def test_missing_layer_is_an_error(converted: dict[str, Converted]) -> None:
    with pytest.raises(BaseError, match="incomplete") as caught:
        map_changed(converted["llama-2"].model, {}, num_hidden_layers=3)
    assert (caught.value.expected, caught.value.found) == ("3 layers", "2")


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama", {"factor": 0}),
        ("llama", {"low_freq_factor": 4.0}),
        ("llama", {"high_freq_factor": "4"}),
        ("llama", {"original_max_position_embeddings": None}),
        ("phi3-long", {"short_factor": [1.0]}),
        ("phi3-long", {"long_factor": [None] * 8}),
        ("phi3-long", {"long_factor": "12345678"}),
    ],
)
def test_wrong_rope_factors_are_named(
    name: str, rope: dict[str, Any], converted: dict[str, Converted]
) -> None:
    folder = converted[name].model
    stated = read_config(folder)["rope_parameters"]
    with pytest.raises(InputError) as caught:
        map_changed(folder, {}, rope_parameters={**stated, **rope})
    assert caught.value.where.removeprefix("config.json: ") in {*rope, "high_freq_factor"}


def test_attention_cap_of_gemma3_is_refused(converted: dict[str, Converted]) -> None:
    with pytest.raises(UnsupportedFeatureError, match="capped attention"):
        map_changed(converted["gemma3"].model, {}, attn_logit_softcapping=50.0)


@pytest.mark.parametrize(
    ("name", "setting", "value", "expected"),
    [
        ("qwen3-moe", "norm_topk_prob", False, "true"),
        ("qwen2-moe", "norm_topk_prob", True, "false"),
        ("gemma2", "query_pre_attn_scalar", 256, "32"),
        ("gemma3", "query_pre_attn_scalar", 24, "32"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    name: str, setting: str, value: Any, expected: str, converted: dict[str, Converted]
) -> None:
    with pytest.raises(UnsupportedFeatureError, match="otherwise than this model") as caught:
        map_changed(converted[name].model, {}, **{setting: value})
    assert caught.value.where == f"config.json: {setting}"
    assert caught.value.expected == expected
    assert "--target merged" in caught.value.hint


def test_largest_gemmas_are_scaled_by_their_width() -> None:
    # google/gemma-3-27b-it and google/gemma-2-27b-it.
    for layers, model_class, width, scalar in (
        (62, "Gemma3ForCausalLM", 5376, 168),
        (46, "Gemma2ForCausalLM", 4608, 144),
    ):
        config = {
            "architectures": [model_class], "hidden_size": width, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "num_hidden_layers": layers,
            "intermediate_size": 21504, "query_pre_attn_scalar": scalar,
        }  # fmt: skip
        assert architecture_keys(config)
        with pytest.raises(UnsupportedFeatureError, match="scales the attention"):
            architecture_keys({**config, "query_pre_attn_scalar": 128})


@pytest.mark.parametrize("name", ["stablelm", "olmo2", "phi2", "qwen2-moe"])
def test_head_that_llama_cpp_needs_is_asked_for(name: str, converted: dict[str, Converted]) -> None:
    folder = converted[name].model
    assert "lm_head.weight" in read_shapes(folder)
    with pytest.raises(UnsupportedFeatureError, match="without an output head") as caught:
        map_changed(folder, {"lm_head.weight": None}, tie_word_embeddings=True)
    assert caught.value.where == "config.json: tie_word_embeddings"
    assert "lm_head in target_modules" in caught.value.hint
