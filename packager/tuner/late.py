"""Tuners that decompose the weights of all modules, and whose file holds what comes of it.

PEFT makes their layers while there are no weights, which spares the decompositions; weights come
before what the file holds is loaded.

Source: PEFT 0.21, tuners/tinylora/layer.py: `_init_svd` makes `tinylora_A` and `tinylora_B`, which
are saved; `_init_projection` draws `tinylora_P` by the number of the module, and need not be saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from packager.tuner.skeleton import place_weights

LATE = frozenset({"TINYLORA"})


def place_late(tuned: Any, own: Any, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Gives one layer its base's weights, and takes all others out of the model.

    Args:
        tuned: PEFT's model, without weights; changed in place.
        own: The layer.
        values: Its parameters by name.
        dtype: Of them.
    """
    for name, layer in list(tuned.named_modules()):
        if isinstance(layer, BaseTunerLayer) and layer is not own:
            parent, _, leaf = name.rpartition(".")
            setattr(tuned.get_submodule(parent), leaf, layer.get_base_layer())
    place_weights(own.get_base_layer(), values, dtype)
    for name, config in tuned.peft_config.items():
        own._init_projection(name, config.u, config.projection_seed)  # noqa: SLF001
