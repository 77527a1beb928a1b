"""How bitsandbytes holds a model that is being trained, as a lock keeps it."""

from __future__ import annotations

from typing import Any

_CLASSES = ("Linear4bit", "Linear8bitLt")
_PREFIX = "base_model.model."
_LAYER = ".base_layer"


def describe_quantisation(model: Any) -> dict[str, Any] | None:
    """Returns the settings of bitsandbytes, `dtype` and `quantized_modules`, or None without.

    Args:
        model: Of transformers, perhaps within PEFT's.

    Source: transformers 5.23, BitsAndBytesConfig.to_dict. PEFT 0.21, tuners/lora/bnb.py: its own
    layers bear the same class names and hold bitsandbytes' as `base_layer`.
    """
    held = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__ in _CLASSES and not hasattr(module, "base_layer")
    }
    settings = getattr(model.config, "quantization_config", None)
    if not held or settings is None:
        return None
    raw = settings if isinstance(settings, dict) else settings.to_dict()
    states = (getattr(module.weight, "quant_state", None) for module in held.values())
    dtypes = {str(state.dtype) for state in states if state is not None} or {str(model.dtype)}
    names = [name.removeprefix(_PREFIX).removesuffix(_LAYER) for name in held]
    return {
        **{key: value for key, value in raw.items() if not key.startswith("_")},
        "dtype": min(dtypes).removeprefix("torch."),
        "quantized_modules": sorted(names),
    }
