"""Llama and the families that are built like it.

Source: llama.cpp 0c1e57098, conversion/llama.py and granite.py; transformers 5.x,
models/*/configuration_*.py (defaults).
"""

from __future__ import annotations

from dataclasses import replace

from packager.gguf import familyname as names
from packager.gguf.family import Family, table
from packager.gguf.familykey import granite_keys, llama_keys
from packager.gguf.key import KEY_SIZE, USUAL, VALUE_SIZE, VOCABULARY
from packager.gguf.rope import llama3_factors

_ROTARY = frozenset({"attn_q", "attn_k"})

LLAMA = Family(
    "llama",
    ("LlamaForCausalLM", "LLaMAForCausalLM"),
    table(
        vocab_size=32000, hidden_size=4096, num_attention_heads=32, num_key_value_heads=None,
        head_dim=None, rope_theta=1e4, max_position_embeddings=2048, rms_norm_eps=1e-6,
    ),
    names.OUTER,
    names.LLAMA,
    permuted=_ROTARY,
    rules=(*USUAL, VOCABULARY),
    own_keys=llama_keys,
    factors=llama3_factors,
    vocabularies=("sentencepiece", "llama-hf", "bpe"),
    space_prefix="stated",
)  # fmt: skip
MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    defaults=table(
        vocab_size=32000, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        head_dim=None, rope_theta=1e4, max_position_embeddings=131072, rms_norm_eps=1e-6,
    ),
)  # fmt: skip
MIXTRAL = replace(
    LLAMA,
    classes=("MixtralForCausalLM",),
    defaults=table(
        vocab_size=32000, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8,
        rope_theta=1e6, max_position_embeddings=131072, rms_norm_eps=1e-5,
        num_local_experts=8, num_experts_per_tok=2,
    ),
    inner=names.MIXTRAL,
    stacks=(names.MIXTRAL_EXPERTS,),
)  # fmt: skip
SMOLLM3 = replace(
    LLAMA,
    architecture="smollm3",
    classes=("SmolLM3ForCausalLM",),
    defaults=table(
        vocab_size=128256, hidden_size=2048, num_attention_heads=16, num_key_value_heads=4,
        rope_theta=2e6, max_position_embeddings=32768, rms_norm_eps=1e-6,
    ),
)  # fmt: skip
GRANITE = replace(
    LLAMA,
    architecture="granite",
    classes=("GraniteForCausalLM",),
    defaults=table(
        vocab_size=32000, hidden_size=4096, num_attention_heads=32, num_key_value_heads=None,
        rope_theta=1e4, max_position_embeddings=2048, rms_norm_eps=1e-6,
        attention_multiplier=1.0, embedding_multiplier=1.0, residual_multiplier=1.0,
        logits_scaling=1.0,
    ),
    rules=tuple(each for each in LLAMA.rules if each not in {KEY_SIZE, VALUE_SIZE}),
    own_keys=granite_keys,
)  # fmt: skip
