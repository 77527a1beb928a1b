"""Which stored weights are linear layers, as their names and shapes tell.

bitsandbytes quantises `torch.nn.Linear` and transformers' `Conv1D`, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from packager.dtype import MERGEABLE
from packager.tensorfile import TensorRef

# Source: transformers 5.x, models/*/modeling_*.py: the models that use pytorch_utils.Conv1D.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_MODULES = ("c_attn", "q_attn", "c_proj", "c_fc")

_HEADS = ("lm_head", "embed_out", "score", "classifier")
"""Output layers: transformers leaves the head, and whatever comes last, as it is."""
# Source: transformers 5.x, models/*/modeling_*.py: modules of class Embedding, and routers, whose
# weight is a parameter of its own.
_NO_LINEAR = re.compile(
    r"(?:.*_)?(?:embed_tokens|embed_in|embeddings?|wte|wpe|shared|embed_positions"
    r"|relative_attention_bias|gate|router|tokens_embed|positions_embed)"
)
_EXPERTS = re.compile(r"\.experts\.")
"""transformers 5 holds the experts of a layer in one parameter, which is no linear layer."""


def is_transposed(config: Mapping[str, Any], module: str) -> bool:
    """Tells whether a base stores the weight of a module as (in_features, out_features)."""
    leaf = module.rpartition(".")[2]
    return config.get("model_type") in CONV1D_MODELS and leaf in CONV1D_MODULES


def linear_module(name: str, shape: tuple[int, ...], dtype: str) -> str | None:
    """Returns the module of a linear layer's weight, or None for any other tensor."""
    module = name.removesuffix(".weight")
    if module == name or len(shape) != 2 or dtype not in MERGEABLE:
        return None
    leaf = module.rpartition(".")[2]
    if _NO_LINEAR.fullmatch(leaf) or _EXPERTS.search(module):
        return None
    return module


def find_linear(ref: TensorRef) -> str | None:
    """Returns the module of a stored linear layer's weight, or None for any other tensor."""
    return linear_module(ref.name, ref.shape, ref.dtype)


def is_head(module: str) -> bool:
    """Tells whether a module is an output layer, which is left as it is where nobody says so."""
    return module.rpartition(".")[2] in _HEADS
