"""Keys that need more than a setting's value, family by family.

Source: llama.cpp 0c1e57098, conversion/*.py, `set_gguf_parameters` of each class.
"""

from __future__ import annotations

from packager.errors import UnsupportedFeatureError
from packager.gguf.key import make_key
from packager.gguf.rope import long_attention_factor, long_factors
from packager.gguf.setting import Settings, as_number, setting_error
from packager.gguf.value import GgufKey, GgufTensor

_OTHERWISE = (
    "serve the merged model with transformers or vLLM: --target merged; in llama.cpp it would "
    "answer otherwise than base and adapter do"
)


def llama_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns how much of a head is rotated: all of it."""
    return (make_key(architecture, "rope.dimension_count", "uint32", settings.head_size),)


def granite_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns Granite's scales; a scale of zero counts as none."""
    scales = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    size = settings.count("hidden_size") // settings.count("num_attention_heads")
    return (
        make_key(architecture, "rope.dimension_count", "uint32", size),
        *(
            make_key(architecture, name, "float32", settings.find(setting), setting=setting)
            for name, setting in scales.items()
            if settings.find(setting)
        ),
    )


def qwen2moe_keys(_architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns nothing, for a model whose experts count as much as llama.cpp lets them.

    Raises:
        UnsupportedFeatureError: The weights of the chosen experts are made to sum to one.
    """
    _check_expert_weights(settings, summing=False)
    return ()


def qwen3moe_keys(_architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns nothing, for a model whose experts count as much as llama.cpp lets them.

    Raises:
        UnsupportedFeatureError: The weights of the chosen experts do not sum to one.
    """
    _check_expert_weights(settings, summing=True)
    return ()


def _check_expert_weights(settings: Settings, *, summing: bool) -> None:
    """Refuses what llama.cpp computes otherwise, since no key of these families tells it.

    Source: llama.cpp 0c1e57098, src/models/qwen2moe.cpp and qwen3moe.cpp, build_moe_ffn.
    """
    stated = bool(settings.find("norm_topk_prob"))
    if stated != summing:
        raise UnsupportedFeatureError(
            "llama.cpp weighs the experts of this architecture otherwise than this model does",
            where="config.json: norm_topk_prob",
            expected=str(summing).lower(),
            found=str(stated).lower(),
            hint=_OTHERWISE,
        )


def gemma2_keys(_architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns nothing, for a model whose attention is scaled as llama.cpp does it.

    Raises:
        UnsupportedFeatureError: It is scaled otherwise.
    """
    _check_attention_scale(settings, layers_of_27b=46)
    return ()


def _check_attention_scale(settings: Settings, *, layers_of_27b: int) -> None:
    """Refuses what llama.cpp computes otherwise, since no key of these families tells it.

    Source: llama.cpp 0c1e57098, src/models/gemma2.cpp and gemma3.cpp, load_arch_hparams: the
    largest model is known by its number of layers.
    """
    taken = settings.head_size
    if settings.count("num_hidden_layers") == layers_of_27b:
        taken = settings.count("hidden_size") // settings.count("num_attention_heads")
    if settings.number("query_pre_attn_scalar") != taken:
        raise UnsupportedFeatureError(
            "llama.cpp scales the attention of this architecture otherwise than this model does",
            where="config.json: query_pre_attn_scalar",
            expected=str(taken),
            found=f"{settings.number('query_pre_attn_scalar'):g}",
            hint=_OTHERWISE,
        )


def gemma3_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns Gemma 3's soft cap and the width of its sliding window.

    Raises:
        UnsupportedFeatureError: Attention is capped, which Gemma 3 has given up, or scaled
            otherwise than llama.cpp does it.
    """
    _check_attention_scale(settings, layers_of_27b=62)
    if settings.find("attn_logit_softcapping") is not None:
        raise UnsupportedFeatureError(
            "GGUF has no capped attention for Gemma 3",
            where="config.json: attn_logit_softcapping",
            expected="null",
            found=repr(settings.find("attn_logit_softcapping"))[:80],
            hint="release with --target merged",
        )
    keys = []
    if cap := settings.find("final_logit_softcapping"):
        keys.append(make_key(architecture, "final_logit_softcapping", "float32", cap))
    window = settings.find("sliding_window")
    if settings.find("sliding_window_pattern") != 1:
        keys.append(make_key(architecture, "attention.sliding_window", "uint32", window))
    return tuple(keys)


def phi2_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns what Phi 1 to 2 derive from their width, and their partial rotation."""
    heads = settings.count("num_attention_heads")
    return (
        make_key(architecture, "feed_forward_length", "uint32", 4 * settings.count("hidden_size")),
        make_key(architecture, "attention.head_count_kv", "uint32", heads),
        make_key(architecture, "rope.dimension_count", "uint32", _rotary_size(settings)),
    )


def phi3_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns the keys of Phi's LongRoPE; a window of 0 tells Phi 4 from Phi 3."""
    values = {
        "rope.scaling.original_context_length": settings.rope["original_max_position_embeddings"],
        "rope.dimension_count": _rotary_size(settings),
        "attention.sliding_window": settings.find("sliding_window") or 0,
    }
    keys = [make_key(architecture, name, "uint32", value) for name, value in values.items()]
    base = settings.full_rope.get("rope_theta")
    keys.append(make_key(architecture, "rope.freq_base", "float32", base))
    factor = long_attention_factor(settings)
    if factor is not None:
        keys.append(make_key(architecture, "rope.scaling.attn_factor", "float32", factor))
    return tuple(keys)


def phi3_factors(settings: Settings) -> tuple[GgufTensor, ...]:
    """Returns the factor tensors of Phi's LongRoPE."""
    return long_factors(settings, _rotary_size(settings))


def gpt2_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns GPT-2's inner width, which is four times the outer one."""
    width = settings.count("n_embd", "hidden_size")
    inner = settings.find("n_inner")
    if inner not in {None, 4 * width}:
        raise setting_error("n_inner", f"{4 * width}, the only width that llama.cpp takes", inner)
    return (make_key(architecture, "feed_forward_length", "uint32", 4 * width),)


def stablelm_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns StableLM's partial rotation and whether its halves run side by side."""
    factor = as_number(settings.rope.get("partial_rotary_factor"), "partial_rotary_factor")
    size = settings.count("hidden_size") // settings.count("num_attention_heads")
    parallel = settings.find("use_parallel_residual")
    return (
        make_key(architecture, "rope.dimension_count", "uint32", int(factor * size)),
        make_key(architecture, "use_parallel_residual", "bool", parallel),
    )


def olmo2_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns which layers of OLMo 3 see a window only; OLMo 2 has none."""
    if "sliding_window" not in settings.values:
        return ()
    window = settings.find("sliding_window")
    layers = settings.find("layer_types")
    if not isinstance(layers, list) or len(layers) != settings.count("num_hidden_layers"):
        raise setting_error("layer_types", "a kind for each layer", layers)
    name = f"{architecture}.attention.sliding_window_pattern"
    pattern = tuple(layer == "sliding_attention" for layer in layers)
    return (
        make_key(architecture, "attention.sliding_window", "uint32", window),
        GgufKey(name, "bool", pattern),
    )


def cohere_keys(architecture: str, _settings: Settings) -> tuple[GgufKey, ...]:
    """Returns that RoPE is not scaled, whatever the context length."""
    return (GgufKey(f"{architecture}.rope.scaling.type", "string", "none"),)


def _rotary_size(settings: Settings) -> int:
    factor = as_number(settings.rope.get("partial_rotary_factor", 1.0), "partial_rotary_factor")
    width = settings.count("hidden_size", "n_embd")
    return int(factor * width) // settings.count("num_attention_heads", "n_head")
