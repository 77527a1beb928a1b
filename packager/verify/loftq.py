"""LoftQ's adapters as PEFT loads them where there is a GPU: onto weights that are rounded first.

Source: PEFT 0.21, tuners/lora/layer.py, LoraLayer.loftq_init; utils/loftq_utils.py, loftq_init,
which asks for CUDA, and quantises anew whenever such an adapter is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn

from packager.adapter import read_adapter
from packager.adapter.scope import residual_kind
from packager.quantisation.blockwise import round_halves
from packager.quantisation.values import round_rows


def round_as_trained(model: nn.Module, directory: Path) -> Any:
    """Rounds the weights that an adapter of LoftQ was trained on; `model` is changed in place.

    Returns:
        The adapter's configuration, with which PEFT does not round again; None for any other.
    """
    spec = read_adapter(directory)
    kind = residual_kind(spec.config) if spec.config.peft_type == "LORA" else None
    if kind not in ("loftq-nf4", "loftq-int8"):
        return None
    for name in spec.modules:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.data = _rounded(weight.data, nf4=kind == "loftq-nf4")
    raw = {**spec.config.raw, "init_lora_weights": True, "loftq_config": {}}
    return PeftConfig.from_peft_type(**raw)


def _rounded(weight: Tensor, *, nf4: bool) -> Tensor:
    return round_halves(weight, "nf4") if nf4 else round_rows(weight)
