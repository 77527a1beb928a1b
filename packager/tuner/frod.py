"""FRoD: PEFT's own layer around one module, with the projections of its kind out of the file.

PEFT works the projections out from the weights of all modules of a kind before it loads them; what
it saved is the same, and makes a module independent of the others.

Source: PEFT 0.21, tuners/frod/model.py (_create_and_replace, _category_from_key) and layer.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.frod.layer import Linear
from peft.tuners.frod.model import _category_from_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_NAME = "default"
_SHARED = ("frod_V", "frod_s_indices", "frod_s_size")
_OWN = ("frod_lambda_l", "frod_lambda_s_values")


def merge_frod(
    config: Any, target: nn.Module, module: str, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Merges one module; `target` is changed in place.

    Args:
        config: PEFT's, of the adapter.
        target: The module with its weights.
        module: Its dotted name.
        tensors: The adapter's that belong to it, and those that all modules share.

    Returns:
        `target`.

    Raises:
        LookupError: The projections were not saved, or a tensor of the module's own is missing.
    """
    kind = _category_from_key(module)
    shared = [f"base_model.{part}.{kind}" for part in _SHARED]
    own = {part: f"base_model.model.{module}.{part}" for part in _OWN}
    missing = [name for name in (*shared, *own.values()) if name not in tensors]
    if missing:
        raise LookupError(
            f"{missing[0]} is not saved: it takes the weights of all its modules at once to make "
            "it, but where save_projection was set"
        )
    turned = isinstance(target, Conv1D)
    config = copy.deepcopy(config)
    config.fan_in_fan_out = turned
    basis, indices, _ = (tensors[name] for name in shared)
    size = torch.tensor(basis.shape)  # as it is saved, too
    buffers = (BufferDict({_NAME: value}, persistent=True) for value in (basis, indices, size))
    layer = Linear(
        target, *buffers, adapter_name=_NAME, config=config, is_target_conv_1d_layer=turned
    )
    for part, name in own.items():
        getattr(layer, part)[_NAME].data = tensors[name]
    layer.merge()
    return target
