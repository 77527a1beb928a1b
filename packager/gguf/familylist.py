"""The families that can be written as GGUF.

Source: llama.cpp 0c1e57098, conversion/*.py (one class per family); transformers 5.x,
models/*/configuration_*.py (defaults).
"""

from __future__ import annotations

from dataclasses import replace

from packager.gguf import familyname as names
from packager.gguf.family import Family, table
from packager.gguf.familykey import (
    cohere_keys,
    gemma2_keys,
    gemma3_keys,
    gpt2_keys,
    olmo2_keys,
    phi2_keys,
    phi3_factors,
    phi3_keys,
    qwen2moe_keys,
    qwen3moe_keys,
    stablelm_keys,
)
from packager.gguf.familyllama import GRANITE, LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from packager.gguf.key import (
    CONTEXT,
    EMBEDDING,
    EPSILON,
    FEED_FORWARD,
    HEADS,
    KEY_HEADS,
    KEY_SIZE,
    RMS_EPSILON,
    USUAL,
    VALUE_SIZE,
    WINDOW,
    rule,
)
from packager.gguf.value import GgufKey

_EXPERT_WIDTH = rule("expert_feed_forward_length", "moe_intermediate_size")

_QWEN_DEFAULTS = {
    "vocab_size": 151936, "num_key_value_heads": 32, "rope_theta": 1e4,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
}  # fmt: skip
_QWEN2 = Family(
    "qwen2",
    ("Qwen2ForCausalLM",),
    table(**_QWEN_DEFAULTS),
    names.OUTER,
    names.LLAMA,
    vocabularies=("sentencepiece", "bpe"),
)
_QWEN3 = replace(
    _QWEN2,
    architecture="qwen3",
    classes=("Qwen3ForCausalLM",),
    defaults=table(**_QWEN_DEFAULTS, head_dim=128),
    inner=names.QWEN3,
)
_QWEN2_MOE = Family(
    "qwen2moe",
    ("Qwen2MoeForCausalLM",),
    table(
        **_QWEN_DEFAULTS | {"num_key_value_heads": 16},
        num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632, norm_topk_prob=False,
    ),
    names.OUTER,
    names.QWEN2_MOE,
    stacks=(names.QWEN_EXPERTS,),
    rules=(
        *USUAL,
        _EXPERT_WIDTH,
        rule("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
    needs_head=True,
    own_keys=qwen2moe_keys,
)  # fmt: skip
_QWEN3_MOE = replace(
    _QWEN2_MOE,
    architecture="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    defaults=table(
        **_QWEN_DEFAULTS | {"num_key_value_heads": 4},
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=False,
    ),
    inner=names.QWEN3_MOE,
    needs_head=False,
    own_keys=qwen3moe_keys,
)  # fmt: skip

_GEMMA_RULES = (
    CONTEXT, EMBEDDING, FEED_FORWARD, HEADS, KEY_HEADS, RMS_EPSILON, KEY_SIZE, VALUE_SIZE,
)  # fmt: skip
_GEMMA2 = Family(
    "gemma2",
    ("Gemma2ForCausalLM",),
    table(
        vocab_size=256000, hidden_size=2304, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256, max_position_embeddings=8192, rms_norm_eps=1e-6, sliding_window=4096,
        attn_logit_softcapping=50.0, final_logit_softcapping=30.0, tie_word_embeddings=True,
        num_hidden_layers=26, query_pre_attn_scalar=256,
    ),
    names.OUTER,
    names.GEMMA2,
    shifts_norms=True,
    reads_head=False,
    rules=(
        *_GEMMA_RULES,
        rule("attn_logit_softcapping", "attn_logit_softcapping", type="float32"),
        rule("final_logit_softcapping", "final_logit_softcapping", type="float32"),
        WINDOW,
    ),
    usual=False,
    own_keys=gemma2_keys,
    vocabularies=("sentencepiece",),
    space_prefix="never",
)  # fmt: skip
_GEMMA3 = replace(
    _GEMMA2,
    architecture="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    defaults=table(
        vocab_size=262208, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        max_position_embeddings=131072, rms_norm_eps=1e-6, sliding_window=4096,
        rope_theta=1e6, rope_local_base_freq=1e4, query_pre_attn_scalar=256,
    ),
    inner=names.GEMMA3,
    optional_prefix="language_model.",
    foreign=("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
             "model.multi_modal_projector."),
    reads_head=True,
    rules=_GEMMA_RULES,
    usual=True,
    own_keys=gemma3_keys,
    vocabularies=("sentencepiece", "bpe"),
)  # fmt: skip

_PHI2 = Family(
    "phi2",
    ("PhiForCausalLM",),
    table(
        vocab_size=51200, hidden_size=2048, num_attention_heads=32, layer_norm_eps=1e-5,
        max_position_embeddings=2048, rope_theta=1e4, partial_rotary_factor=0.5,
    ),
    names.FINAL_OUTER,
    names.PHI2,
    rules=(rule("context_length", "n_positions", "max_position_embeddings"), EMBEDDING, HEADS,
           EPSILON),
    usual=False,
    needs_head=True,
    own_keys=phi2_keys,
    tokenizer_defaults=(GgufKey("tokenizer.ggml.add_bos_token", "bool", value=False),),
)  # fmt: skip
_PHI3 = Family(
    "phi3",
    ("Phi3ForCausalLM",),
    table(
        vocab_size=32064, hidden_size=3072, num_attention_heads=32, num_key_value_heads=None,
        max_position_embeddings=4096, original_max_position_embeddings=4096, rope_theta=1e4,
        rms_norm_eps=1e-5, partial_rotary_factor=1.0,
    ),
    names.OUTER,
    names.PHI3,
    rules=(CONTEXT, EMBEDDING, FEED_FORWARD, HEADS, KEY_HEADS, RMS_EPSILON),
    usual=False,
    own_keys=phi3_keys,
    factors=phi3_factors,
    vocabularies=("sentencepiece-or-gpt2",),
)  # fmt: skip

_GPT2 = Family(
    "gpt2",
    ("GPT2LMHeadModel",),
    table(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12,
          layer_norm_epsilon=1e-5),
    names.GPT2_OUTER,
    names.GPT2,
    block="h.",
    transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    optional_prefix="transformer.",
    rules=(rule("context_length", "n_ctx", "n_positions"), EMBEDDING, HEADS, EPSILON),
    usual=False,
    own_keys=gpt2_keys,
)  # fmt: skip
_STABLELM = Family(
    "stablelm",
    ("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    table(
        vocab_size=50304, hidden_size=2560, num_attention_heads=32, num_key_value_heads=32,
        max_position_embeddings=4096, layer_norm_eps=1e-5, rope_theta=1e4,
        partial_rotary_factor=0.25, use_parallel_residual=False,
    ),
    names.OUTER,
    names.LLAMA,
    stacks=names.STABLELM_NORMS,
    rules=(
        CONTEXT, EMBEDDING, FEED_FORWARD, HEADS, KEY_HEADS,
        rule("attention.layer_norm_epsilon", "layer_norm_eps", "norm_eps", type="float32"),
    ),
    usual=False,
    needs_head=True,
    own_keys=stablelm_keys,
)  # fmt: skip
_OLMO2 = Family(
    "olmo2",
    ("Olmo2ForCausalLM",),
    table(
        vocab_size=50304, num_key_value_heads=None, rope_theta=1e4, rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    ),
    names.OUTER,
    names.OLMO2,
    needs_head=True,
    own_keys=olmo2_keys,
)  # fmt: skip
_STARCODER2 = Family(
    "starcoder2",
    ("Starcoder2ForCausalLM",),
    table(
        vocab_size=49152, num_key_value_heads=2, rope_theta=1e4, norm_epsilon=1e-5,
        max_position_embeddings=4096,
    ),
    names.OUTER,
    names.STARCODER2,
)  # fmt: skip
_COHERE = Family(
    "command-r",
    ("CohereForCausalLM",),
    table(
        vocab_size=256000, num_key_value_heads=None, rope_theta=5e5, layer_norm_eps=1e-5,
        max_position_embeddings=8192, logit_scale=0.0625, tie_word_embeddings=True,
    ),
    names.OUTER,
    names.COHERE,
    reads_head=False,
    rules=(
        rule("context_length", "model_max_length", "max_position_embeddings"),
        *USUAL[1:],
        rule("logit_scale", "logit_scale", type="float32"),
    ),
    own_keys=cohere_keys,
)  # fmt: skip

FAMILIES = (
    LLAMA, MISTRAL, MIXTRAL, SMOLLM3, GRANITE, _QWEN2, _QWEN3, _QWEN2_MOE, _QWEN3_MOE,
    _GEMMA2, _GEMMA3, _PHI2, _PHI3, _GPT2, _STABLELM, _OLMO2, _STARCODER2, _COHERE,
)  # fmt: skip
"""Every family, each with the classes that it stands for."""
