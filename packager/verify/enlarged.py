"""A base with as many rows of its vocabulary as an adapter was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from packager.adapter.spec import WEIGHTS_NAME
from packager.adapter.tensorname import parse_tensor_name
from packager.tensorfile import read_header

_WRAPPED = (".original_module.", ".token_adapter.trainable_tokens_delta")


def enlarge_vocabulary(model: Any, directory: Path) -> int:
    """Resizes a loaded base to the adapter's embedding, which PEFT leaves to its user.

    New rows are zero until the adapter's own are loaded over them.

    Args:
        model: A transformers model; changed in place.
        directory: The adapter.

    Returns:
        Rows of the input embedding.
    """
    embedding = model.get_input_embeddings()
    if embedding is None:
        return 0
    before = int(embedding.weight.shape[0])
    rows = _trained_rows(model, directory) or before
    if rows != before:
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[before:] = 0
    return rows


def is_repetition(name: str) -> bool:
    """Tells whether PEFT saved a tensor from inside of its wrapper once more, and passes it over.

    That it holds the same is checked where the adapter is merged.

    Source: PEFT 0.21, utils/save_and_load.py, get_peft_model_state_dict: embeddings that were
    resized and are in `modules_to_save`, and heads that are tied to trained rows.
    """
    return ".modules_to_save.weight" in name or any(part in name for part in _WRAPPED)


def _trained_rows(model: Any, directory: Path) -> int | None:
    """Returns the rows of the embedding or the head in the adapter, if it carries one of them."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if any(module is layer for layer in layers)
    }
    for ref in read_header(directory / WEIGHTS_NAME).tensors:
        name = parse_tensor_name(ref.name)
        if name is not None and name.leaf and name.parameter in names:
            return ref.shape[0] if ref.shape else None
    return None
