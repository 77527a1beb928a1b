"""Models that bitsandbytes or transformers hold quantised, loaded so that weights are compared.

Activations stay in float32, whatever a processor could do faster with short floats: the figures of
a comparison are then those of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from packager.base import BaseIndex
from packager.plan import PlannedTensor
from packager.quantisation.encoding import (
    FOUR_BIT_BLOCK,
    FourBit,
    FourBitLoad,
    QuantisedRef,
    Turned,
)
from packager.quantisation.scheme import CONFIG_KEY, find_scheme
from packager.quantisation.training import TrainingQuantisation, dequantised_tensors
from packager.tensorfile import TensorRef

_INSTALL = 'pip install "lorapack[bitsandbytes]"'
_CPU = {"": "cpu"}
_CLASSES = ("Linear4bit", "Linear8bitLt")


def why_not_loaded(config: Mapping[str, Any], training: TrainingQuantisation | None) -> str:
    """Says why a base cannot be run as it was in training; empty where it can.

    Args:
        config: Its `config.json`.
        training: How it was quantised while it was loaded, or None.
    """
    scheme = find_scheme(config)
    if config.get(CONFIG_KEY) and scheme is None:
        return "the base is quantised in a way that lorapack does not read"
    if scheme == "compressed-tensors":
        return "a base in compressed-tensors is read, but not run: its weights are checked"
    if (scheme == "bitsandbytes" or training is not None) and find_spec("bitsandbytes") is None:
        return f"what the adapter saw in training is run by bitsandbytes: {_INSTALL}"
    return ""


def why_not_exact(index: BaseIndex) -> str:
    """Says why bitsandbytes would run a base wrongly on a processor; empty where it would not.

    Source: bitsandbytes 0.50, backends/cpu/ops.py, dequantize_4bit: its kernel takes the scales
    of other blocks where a row ends within a block.
    """
    for ref in index.tensors.values():
        encoding = ref.encoding if isinstance(ref, QuantisedRef) else None
        encoding = encoding.inner if isinstance(encoding, Turned) else encoding
        if isinstance(encoding, FourBit | FourBitLoad):
            block = encoding.block if isinstance(encoding, FourBit) else FOUR_BIT_BLOCK
            width = ref.shape[0] if _is_transposed(ref) else ref.shape[-1]
            if width % block:
                return _misread(width, block)
    return ""


def why_not_compared(index: BaseIndex, training: TrainingQuantisation) -> str:
    """Says why merges onto a base cannot be compared with training; empty where they can.

    Args:
        index: The base, in 16 bits or as training saw it.
        training: How it was held in training.
    """
    plain = {
        name: getattr(getattr(ref, "encoding", None), "plain", ref)
        for name, ref in index.tensors.items()
    }
    held = replace(index, tensors=dequantised_tensors(plain, index.config, training))
    return why_not_loaded(index.config, training) or why_not_exact(held)


def why_not_run(tensors: Iterable[PlannedTensor]) -> str:
    """Says why a merged model cannot be run here; empty where it can.

    Args:
        tensors: That it stores.
    """
    shapes = [tensor.four_bit.shape for tensor in tensors if tensor.four_bit is not None]
    if shapes and find_spec("bitsandbytes") is None:
        return f"a model in four bits is run by bitsandbytes: {_INSTALL}"
    widths = sorted({shape[-1] for shape in shapes if shape[-1] % FOUR_BIT_BLOCK})
    return _misread(widths[0], FOUR_BIT_BLOCK) if widths else ""


def _misread(width: int, block: int) -> str:
    return (
        f"bitsandbytes misreads rows of {width} values, which do not fill blocks of {block}, on a "
        "processor; the weights are checked without it"
    )


def _is_transposed(ref: TensorRef) -> bool:
    encoding = ref.encoding if isinstance(ref, QuantisedRef) else None
    loaded = isinstance(encoding, FourBitLoad) and encoding.transposed
    return loaded or isinstance(encoding, Turned)


def load_arguments(
    config: Mapping[str, Any], training: TrainingQuantisation | None
) -> dict[str, Any]:
    """Returns what `from_pretrained` is told about quantisation.

    Args:
        config: `config.json` of the folder to be loaded.
        training: How the base was quantised while it was loaded, or None for as it is stored.
    """
    if find_scheme(config) == "bitsandbytes":
        return {"device_map": _CPU}
    if training is None:
        return {}
    from transformers import BitsAndBytesConfig

    kind, _, double = training.loaded_in.partition("-")
    settings: dict[str, Any] = {
        "llm_int8_skip_modules": None if training.skipped is None else list(training.skipped)
    }
    if kind == "int8":
        settings["load_in_8bit"] = True
    else:
        settings |= {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": bool(double),
        }
    return {"device_map": _CPU, "quantization_config": BitsAndBytesConfig(**settings)}


def compute_in_float32(model: Any) -> Any:
    """Has quantised layers compute in float32; returns the model.

    Layers of 8 bits, which round activations to 8 bits as well, become plain ones with the same
    weights.

    Source: bitsandbytes 0.50, nn/modules.py, Linear4bit.forward; transformers 5.23,
    integrations/bitsandbytes.py, dequantize_and_replace.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.compute_dtype = torch.float32
            module.compute_type_is_set = True
            module.support_avx512bf16_for_cpu = False
    if getattr(model, "is_loaded_in_8bit", False):
        model.dequantize(torch.float32)
        model.is_loaded_in_8bit = False
    # What is not quantised, transformers may leave in the type that it is stored in.
    for module in model.modules():
        if type(module).__name__ not in _CLASSES:
            for weight in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if weight.is_floating_point():
                    weight.data = weight.data.float()
    return model
