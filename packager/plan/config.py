"""What merging changes in a model's configuration: rows of the vocabulary, layers, a head apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packager.base import BaseIndex
from packager.base.index import ALWAYS_TIED
from packager.plan.replication import replicate_config
from packager.plan.value import PlannedTensor

_NESTED = "text_config"
_VOCABULARY = "vocab_size"


def resized_rows(planned: Mapping[str, PlannedTensor], base: BaseIndex) -> int | None:
    """Returns the rows of the merged embedding where the base has another number of them."""
    if base.embedding is None:
        return None
    rows = planned[base.embedding.name].shape[0]
    return None if rows == base.embedding.shape[0] else rows


def adapt_config(
    config: Mapping[str, Any],
    *,
    unties_head: bool,
    vocab_rows: int | None,
    layers: tuple[int, ...],
) -> dict[str, Any]:
    """Returns the configuration of a merged model.

    Source: transformers 5.x, modeling_utils.py, resize_token_embeddings, and
    configuration_utils.py: a composite model keeps its language model in `text_config`.

    Args:
        config: Of the base.
        unties_head: Whether the head has become a tensor of its own.
        vocab_rows: Rows of the embedding, where they are not the base's.
        layers: The base's layer of each layer, where they are not the base's.
    """
    nested = config.get(_NESTED)
    changed = replicate_config(config, layers) if layers else dict(config)
    if isinstance(nested, dict):
        changed[_NESTED] = adapt_config(
            nested, unties_head=unties_head, vocab_rows=vocab_rows, layers=layers
        )
    if unties_head and config.get("model_type") not in ALWAYS_TIED:
        changed["tie_word_embeddings"] = False
    if vocab_rows is not None and (_VOCABULARY in config or not isinstance(nested, dict)):
        changed[_VOCABULARY] = vocab_rows
    return changed
