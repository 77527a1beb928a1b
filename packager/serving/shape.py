"""The sizes of a model that decide how it is spread over GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_SIZE = 1 << 31
_NESTED = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        layers: Transformer blocks.
        hidden_size: Width.
        heads: Of the queries.
        kv_heads: Of the keys and values.
        head_dim: Values of one head.
        intermediate_size: Width inside of the feed-forward block.
        vocabulary: Rows of the embedding.
        context: Most tokens that the model was made for.
        latent: Values that a layer keeps of a token where it keeps no keys and values of its
            heads (multi-head latent attention); else 0.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocabulary: int
    context: int
    latent: int = 0


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Reads the sizes from a `config.json`; None where it does not tell them, or tells nonsense.

    Source: transformers 5.23, models/*/configuration_*.py: `attribute_map` of the older families.
    """
    nested = (config.get(name) for name in _NESTED)
    text = next((value for value in nested if isinstance(value, dict)), config)
    width = _size(text, "hidden_size", "n_embd", "d_model")
    heads = _size(text, "num_attention_heads", "n_head", "n_heads")
    layers = _size(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    vocabulary = _size(text, "vocab_size") or _size(config, "vocab_size")
    context = _size(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    if not (width and heads and layers and vocabulary and context):
        return None
    latent = _size(text, "kv_lora_rank") or 0
    return ModelShape(
        layers=layers,
        hidden_size=width,
        heads=heads,
        kv_heads=_size(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads,
        head_dim=_size(text, "head_dim") or max(width // heads, 1),
        intermediate_size=_size(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * width,
        vocabulary=vocabulary,
        context=context,
        latent=latent + (_size(text, "qk_rope_head_dim") or 0) if latent else 0,
    )


def _size(config: Mapping[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    value = next((value for value in values if value is not None), None)
    return value if type(value) is int and 0 < value < _MAX_SIZE else None
