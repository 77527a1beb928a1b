"""Names of modules in checkpoints, and what llama.cpp calls them.

Source: llama.cpp 0c1e57098, gguf-py/gguf/tensor_mapping.py and constants.py (`TENSOR_NAMES`);
transformers 5.x, models/*/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from packager.gguf.family import Stack

_HEADS = ("num_attention_heads",)
_EXPERTS = ("num_local_experts", "num_experts")

OUTER: Mapping[str, str] = MappingProxyType(
    {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
)
FINAL_OUTER: Mapping[str, str] = MappingProxyType(
    {
        "model.embed_tokens": "token_embd",
        "model.final_layernorm": "output_norm",
        "lm_head": "output",
    }
)
GPT2_OUTER: Mapping[str, str] = MappingProxyType(
    {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
)

_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_GATED = {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}

_LLAMA = _ATTENTION | _GATED | _NORMS
LLAMA: Mapping[str, str] = MappingProxyType(_LLAMA)
MIXTRAL: Mapping[str, str] = MappingProxyType(
    _ATTENTION | _NORMS | {"block_sparse_moe.gate": "ffn_gate_inp"}
)
QWEN3: Mapping[str, str] = MappingProxyType(_LLAMA | _HEAD_NORMS)
# llama.cpp has no layers without experts in these two.
QWEN2_MOE: Mapping[str, str] = MappingProxyType(
    _ATTENTION
    | _NORMS
    | {
        "mlp.gate": "ffn_gate_inp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
    }
)
QWEN3_MOE: Mapping[str, str] = MappingProxyType(
    _ATTENTION | _NORMS | _HEAD_NORMS | {"mlp.gate": "ffn_gate_inp"}
)
_GEMMA2 = (
    _ATTENTION
    | _GATED
    | {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
GEMMA2: Mapping[str, str] = MappingProxyType(_GEMMA2)
GEMMA3: Mapping[str, str] = MappingProxyType(_GEMMA2 | _HEAD_NORMS)
OLMO2: Mapping[str, str] = MappingProxyType(
    _ATTENTION
    | _GATED
    | _HEAD_NORMS
    | {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
)
PHI2: Mapping[str, str] = MappingProxyType(
    {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.dense": "attn_output",
        "input_layernorm": "attn_norm",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }
)
PHI3: Mapping[str, str] = MappingProxyType(
    _NORMS
    | {
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
GPT2: Mapping[str, str] = MappingProxyType(
    {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }
)
STARCODER2: Mapping[str, str] = MappingProxyType(
    _ATTENTION | _NORMS | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
)
COHERE: Mapping[str, str] = MappingProxyType(
    _ATTENTION | _GATED | _HEAD_NORMS | {"input_layernorm": "attn_norm"}
)

MIXTRAL_EXPERTS = Stack(
    "block_sparse_moe.experts.",
    MappingProxyType({"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}),
    _EXPERTS,
)
QWEN_EXPERTS = Stack(
    "mlp.experts.",
    MappingProxyType(
        {"down_proj": "ffn_down_exps", "gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps"}
    ),
    _EXPERTS,
)
STABLELM_NORMS = (
    Stack("self_attn.q_layernorm.norms.", MappingProxyType({"": "attn_q_norm"}), _HEADS),
    Stack(
        "self_attn.k_layernorm.norms.",
        MappingProxyType({"": "attn_k_norm"}),
        ("num_key_value_heads",),
    ),
)
