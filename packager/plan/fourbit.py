"""A merged model in bitsandbytes' four bits: which tensors each linear weight becomes, and back.

Scales are stored as they are, not quantised once more: what quantised scales are described with
depends on their values, and a plan knows every byte's place before a value is read.

Source: transformers 5.23, quantizers/quantizer_bnb_4bit.py; bitsandbytes 0.50, nn/modules.py,
Linear4bit._save_to_state_dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from packager.base import BaseIndex
from packager.dtype import TORCH_NAMES
from packager.errors import LorapackError, UnsupportedFeatureError
from packager.plan.value import FourBitPart, PlannedTensor
from packager.quantisation.encoding import FOUR_BIT_BLOCK, FourBitKind
from packager.quantisation.layer import CONV1D_MODELS, is_head, linear_module
from packager.quantisation.state import STATE_MARK, FourBitState, render_state

KIND: FourBitKind = "nf4"
_CODES = 16


def check_four_bit(base: BaseIndex) -> list[LorapackError]:
    """Returns why a model of this base cannot be written in four bits."""
    model_type = base.config.get("model_type")
    if model_type not in CONV1D_MODELS:
        return []
    return [
        UnsupportedFeatureError(
            f"a {model_type} in bitsandbytes' four bits stores its weights the other way round",
            where="--quantize-hub",
            expected="a model whose layers are torch.nn.Linear",
            found=str(model_type),
            hint="leave --quantize-hub out; whoever loads the merged model can quantise it then",
        )
    ]


def quantise_planned(planned: Iterable[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """Returns what is stored of merged tensors whose linear weights are quantised."""
    return tuple(part for tensor in planned for part in _parts(tensor))


def merge_parts(stored: Iterable[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """Returns the tensors that stored ones stand for: the other way of `quantise_planned`."""
    merged = []
    for tensor in stored:
        part = tensor.four_bit
        if part is None:
            merged.append(tensor)
        elif part.part == "weight":
            merged.append(replace(tensor, dtype=part.dtype, shape=part.shape))
    return tuple(merged)


def four_bit_config(stored: Iterable[PlannedTensor]) -> dict[str, Any]:
    """Returns `quantization_config` of `config.json`.

    Every matrix that is not quantised is named, so that nobody has to guess which they are.
    """
    tensors = tuple(stored)
    quantised = [item.four_bit for item in tensors if item.four_bit is not None]
    kept = {
        item.name.removesuffix(".weight")
        for item in tensors
        if item.four_bit is None and len(item.shape) == 2 and item.name.endswith(".weight")
    }
    dtypes = [part.dtype for part in quantised]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": KIND,
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": TORCH_NAMES[max(sorted(set(dtypes)), key=dtypes.count)],
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted(kept | {"lm_head"}),
    }


def _parts(tensor: PlannedTensor) -> tuple[PlannedTensor, ...]:
    module = linear_module(tensor.name, tensor.shape, tensor.dtype)
    count = math.prod(tensor.shape)
    if module is None or is_head(module) or count % 2 or not count:
        return (tensor,)
    state = render_state(FourBitState(KIND, tensor.dtype, tensor.shape, FOUR_BIT_BLOCK))
    layout: Mapping[str, tuple[str, str, tuple[int, ...]]] = {
        "weight": ("", "U8", (count // 2, 1)),
        "absmax": (".absmax", "F32", (-(-count // FOUR_BIT_BLOCK),)),
        "quant_map": (".quant_map", "F32", (_CODES,)),
        "quant_state": (f"{STATE_MARK}{KIND}", "U8", (len(state),)),
    }
    return tuple(
        replace(
            tensor,
            name=f"{tensor.name}{ending}",
            dtype=dtype,
            shape=shape,
            rule=f"{tensor.rule}+{KIND}",
            four_bit=FourBitPart(part, tensor.dtype, tensor.shape),  # type: ignore[arg-type]
        )
        for part, (ending, dtype, shape) in layout.items()
    )
