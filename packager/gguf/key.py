"""Metadata keys of an architecture, from a model's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packager.gguf.rope import rope_keys
from packager.gguf.setting import Settings, as_number, setting_error
from packager.gguf.value import GgufKey, KeyType, KeyValue

_MAX_UINT32 = (1 << 32) - 1


@dataclass(frozen=True)
class KeyRule:
    """A key that holds a setting.

    Attributes:
        name: Without the architecture, such as `attention.head_count`.
        settings: Names in the configuration; the first that exists counts.
        type: Of the key.
    """

    name: str
    settings: tuple[str, ...]
    type: KeyType = "uint32"


def rule(name: str, *settings: str, type: KeyType = "uint32") -> KeyRule:  # noqa: A002
    """Returns a rule; see `KeyRule`."""
    return KeyRule(name, settings, type)


# Source: llama.cpp 0c1e57098, conversion/base.py (`TextModel.set_gguf_parameters`) and
# gguf-py/gguf/constants.py (`Keys`).
CONTEXT = rule(
    "context_length", "max_position_embeddings", "n_ctx", "n_positions", "max_length",
    "max_sequence_length", "model_max_length",
)  # fmt: skip
EMBEDDING = rule("embedding_length", "hidden_size", "n_embd", "dim")
FEED_FORWARD = rule("feed_forward_length", "intermediate_size", "n_inner", "hidden_dim")
HEADS = rule("attention.head_count", "num_attention_heads", "n_head", "n_heads")
KEY_HEADS = rule("attention.head_count_kv", "num_key_value_heads", "n_kv_heads")
RMS_EPSILON = rule("attention.layer_norm_rms_epsilon", "rms_norm_eps", "norm_eps", type="float32")
EPSILON = rule(
    "attention.layer_norm_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon",
    type="float32",
)  # fmt: skip
KEY_SIZE = rule("attention.key_length", "head_dim")
VALUE_SIZE = rule("attention.value_length", "head_dim")
WINDOW = rule("attention.sliding_window", "sliding_window")
VOCABULARY = rule("vocab_size", "vocab_size")

USUAL = (
    CONTEXT, EMBEDDING, FEED_FORWARD, HEADS, KEY_HEADS, RMS_EPSILON, EPSILON,
    rule("expert_count", "num_local_experts", "num_experts"),
    rule("expert_used_count", "num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
    KEY_SIZE, VALUE_SIZE,
)  # fmt: skip
"""The rules of most architectures, which also get the keys of RoPE."""


def apply_rules(
    architecture: str, rules: Iterable[KeyRule], settings: Settings
) -> tuple[GgufKey, ...]:
    """Returns a key for each rule whose setting exists and is not null.

    Raises:
        InputError: A setting has another type than its key.
    """
    return tuple(
        make_key(architecture, each.name, each.type, value, setting=each.settings[0])
        for each in rules
        if (value := settings.find(*each.settings)) is not None
    )


def usual_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns the keys of RoPE, and that of attention that looks both ways.

    Raises:
        InputError: A setting is not what it has to be.
    """
    keys = rope_keys(architecture, settings)
    if settings.find("is_causal") is False:
        keys += (GgufKey(f"{architecture}.attention.causal", "bool", value=False),)
    return keys


def make_key(
    architecture: str, name: str, kind: KeyType, value: Any, *, setting: str = ""
) -> GgufKey:
    """Returns a key of an architecture whose value has been checked.

    Raises:
        InputError: The value has another type than the key.
    """
    return GgufKey(f"{architecture}.{name}", kind, _checked(value, kind, setting or name))


def _checked(value: Any, kind: KeyType, setting: str) -> KeyValue:
    if kind == "float32":
        return as_number(value, setting)
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise setting_error(setting, "true or false", value)
    if type(value) is int and 0 <= value <= _MAX_UINT32:
        return value
    raise setting_error(setting, "a whole number from 0 on", value)
