"""Tiny random models of families whose checkpoints name or cut parameters otherwise than the model.

A base is written by `save_pretrained`, whose layout is that of the checkpoints on the Hub: the
names that the tests below expect are those of mistralai/Mixtral-8x7B-v0.1, Qwen/Qwen3-30B-A3B,
unsloth/gpt-oss-20b-BF16, ibm-granite/granite-3.1-1b-a400m-base, google/gemma-3-4b-it,
Qwen/Qwen2.5-VL-3B-Instruct and llava-hf/llava-1.5-7b-hf.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

TOKENS = 64
_TEXT = {
    "vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def _text(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(transformers, name)(**{**_TEXT, **settings})


def _llava(name: str, vision: str = "clip_vision_model", **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        return getattr(transformers, name)(
            text_config={"model_type": "llama", **_TEXT, "intermediate_size": 64},
            vision_config={"model_type": vision, **_VISION},
            **settings,
        )

    return make


def _gemma3() -> Any:
    return transformers.Gemma3Config(
        text_config={**_TEXT, "intermediate_size": 64, "sliding_window": 16,
                     "query_pre_attn_scalar": 8},
        vision_config={"model_type": "siglip_vision_model", **_VISION},
        mm_tokens_per_image=4,
    )  # fmt: skip


def _llama4() -> Any:
    text = {
        "intermediate_size": 48,
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "no_rope_layers": [1, 1],
    }
    return transformers.Llama4Config(
        text_config={**_TEXT, **text},
        vision_config={**_VISION, "vision_output_dim": 32, "projector_input_dim": 32,
                       "projector_output_dim": 32, "pixel_shuffle_ratio": 1.0},
    )  # fmt: skip


def _qwen_vision(name: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        return getattr(transformers, name)(
            text_config={**_TEXT, "intermediate_size": 64, "rope_parameters": rope, **settings},
            vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 8,
                           "embed_dim": 32, "out_hidden_size": 32, "intermediate_size": 32},
        )  # fmt: skip

    return make


_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CONFIGS: dict[str, Callable[[], Any]] = {
    "mixtral": _text("MixtralConfig", intermediate_size=48, num_local_experts=4),
    "qwen2-moe": _text(
        "Qwen2MoeConfig", intermediate_size=40, shared_expert_intermediate_size=40, **_EXPERTS
    ),
    "qwen3-moe": _text("Qwen3MoeConfig", intermediate_size=40, **_EXPERTS),
    "olmoe": _text("OlmoeConfig", intermediate_size=24, num_experts=4, num_experts_per_tok=2),
    "phimoe": _text("PhimoeConfig", intermediate_size=48, num_local_experts=4),
    "gpt-oss": _text(
        "GptOssConfig", intermediate_size=48, num_local_experts=4, num_experts_per_tok=2
    ),
    "gpt-oss square": _text(
        "GptOssConfig", intermediate_size=32, num_local_experts=4, num_experts_per_tok=2
    ),
    "llama4": _text(
        "Llama4TextConfig", intermediate_size=48, intermediate_size_mlp=64, num_local_experts=4,
        num_experts_per_tok=1, interleave_moe_layer_step=1, no_rope_layers=[1, 1],
    ),
    "llama4-vision": _llama4,
    "granite-moe": _text("GraniteMoeConfig", intermediate_size=48, num_local_experts=4),
    "deepseek": _text(
        "DeepseekV3Config", intermediate_size=64, moe_intermediate_size=24, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        num_key_value_heads=4, head_dim=8,
    ),
    "jamba": _text(
        "JambaConfig", intermediate_size=48, num_experts=4, attn_layer_period=1,
        attn_layer_offset=0, expert_layer_period=1, expert_layer_offset=0, use_mamba_kernels=False,
    ),
    "phi3": _text("Phi3Config", intermediate_size=64),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1
    ),
    "gemma3-vision": _gemma3,
    "llava": _llava("LlavaConfig"),
    "llava-next": _llava("LlavaNextConfig"),
    "mistral3": _llava("Mistral3Config", "siglip_vision_model", spatial_merge_size=1),
    "qwen2-vl": _qwen_vision("Qwen2VLConfig"),
    "qwen2.5-vl": _qwen_vision("Qwen2_5_VLConfig"),
    "qwen3-vl-moe": _qwen_vision("Qwen3VLMoeConfig", **_EXPERTS),
    "nomic-bert": lambda: transformers.NomicBertConfig(
        vocab_size=TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48,
    ),
}  # fmt: skip
CLASSES = {
    **dict.fromkeys(CONFIGS, "AutoModelForCausalLM"),
    **dict.fromkeys(
        ("gemma3-vision", "llava", "llava-next", "mistral3", "qwen2-vl", "qwen2.5-vl",
         "qwen3-vl-moe", "llama4-vision"),
        "AutoModelForImageTextToText",
    ),
    "nomic-bert": "AutoModelForMaskedLM",
}  # fmt: skip


def auto_class(family: str) -> Any:
    return getattr(transformers, CLASSES[family])


def make_model(family: str, seed: int = 0) -> Any:
    """Returns a random model in float32, in which every weight matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto_class(family).from_config(CONFIGS[family]()).float().eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.1)
    return model


def save_base(family: str, out: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = make_model(family).to(dtype)
    model.save_pretrained(out)
    return out


def load(family: str, folder: Path) -> Any:
    return auto_class(family).from_pretrained(folder, dtype=torch.float32).eval()


def fill(model: Any, seed: int = 1) -> None:
    """Gives every factor values: PEFT starts one half at zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                assert "lora_" in name
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.2)


def save_adapter(family: str, base: Path, out: Path, **lora: Any) -> Path:
    """Writes an adapter as PEFT saves it."""
    settings = {"r": 3, "lora_alpha": 6, "target_modules": [], **lora}
    tuned = get_peft_model(load(family, base), LoraConfig(**settings))
    fill(tuned)
    tuned.save_pretrained(out, save_embedding_layers=False)
    return out


def load_tuned(family: str, base: Path, adapter: Path) -> Any:
    """Returns base and adapter as PEFT runs them: the oracle."""
    return PeftModel.from_pretrained(load(family, base), adapter).eval()


def answer(model: Any) -> Tensor:
    """Returns the logits of a fixed text, float64."""
    tokens = torch.arange(3, TOKENS - 1).view(3, -1)
    with torch.inference_mode():
        return model(input_ids=tokens).logits.double()
