"""How a base was quantised while an adapter was trained on it: what is known, and from where.

Source: transformers 5.23, utils/quantization_config.py, BitsAndBytesConfig.to_dict;
quantizers/base.py, get_modules_to_not_convert; quantizers/quantizers_utils.py,
should_convert_module. PEFT 0.21, peft_model.py, create_or_update_model_card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from packager.dtype import MERGEABLE, TORCH_NAMES
from packager.errors import InputError
from packager.quantisation.encoding import EightBitLoad, FourBitLoad, QuantisedRef
from packager.quantisation.layer import find_linear, is_head, is_transposed
from packager.tensorfile import TensorRef

LoadedIn = Literal["nf4", "nf4-double", "fp4", "fp4-double", "int8"]
"""How a base was loaded: the sixteen values, and whether the scales were quantised too."""
LOADED_IN: tuple[LoadedIn, ...] = get_args(LoadedIn)

_PLAIN_NAME = re.compile(r"[\w.]{1,512}")
_CARD_LINE = re.compile(r"- (\w{1,40}): (.{0,4000})")
_CARD_MARK = "quantization config was used during training:"
_MAX_MODULES = 1 << 17
_HINT = "say it by hand: --loaded-in nf4, nf4-double, fp4, fp4-double or int8"


@dataclass(frozen=True)
class TrainingQuantisation:
    """How bitsandbytes loaded a base for training.

    Attributes:
        loaded_in: Values and scales.
        dtype: In which the model was loaded besides, as safetensors names it; None for as stored.
        skipped: Modules that were left as they are; None for transformers' own choice.
        modules: The modules that were quantised, where they were written down; else they are
            found by `skipped` and by what their names tell.
        evidence: Where this is known from.
    """

    loaded_in: LoadedIn
    dtype: str | None = None
    skipped: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None
    evidence: Literal["lock", "card", "option"] = field(default="option", compare=False)

    def to_settings(self) -> dict[str, Any]:
        """Returns what `parse_settings` reads."""
        kind, _, double = self.loaded_in.partition("-")
        settings: dict[str, Any] = {"quant_method": "bitsandbytes"}
        if kind == "int8":
            settings["load_in_8bit"] = True
        else:
            settings |= {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": kind,
                "bnb_4bit_use_double_quant": bool(double),
            }
        known = {
            "dtype": None if self.dtype is None else TORCH_NAMES[self.dtype],
            "llm_int8_skip_modules": None if self.skipped is None else list(self.skipped),
            "quantized_modules": None if self.modules is None else list(self.modules),
        }
        return settings | {name: value for name, value in known.items() if value is not None}

    def describe(self) -> str:
        """Returns it in a few words."""
        bits = "8 bits" if self.loaded_in == "int8" else "4 bits"
        return f"the base loaded in {bits} ({self.loaded_in}) by bitsandbytes"


def parse_settings(
    raw: Mapping[str, Any], *, where: str, evidence: Literal["lock", "card"] = "lock"
) -> TrainingQuantisation | None:
    """Reads the settings of bitsandbytes, with `dtype` and `quantized_modules` where known.

    Returns:
        None where they say that nothing was quantised.

    Raises:
        InputError: A setting is not what bitsandbytes takes.
    """
    if raw.get("load_in_8bit") is True:
        loaded: LoadedIn = "int8"
    elif raw.get("load_in_4bit") is True:
        loaded = _four_bit_name(raw, where)
    else:
        return None
    dtype = raw.get("dtype")
    known = {TORCH_NAMES[name]: name for name in MERGEABLE}
    if dtype is not None and dtype not in known:
        raise _wrong(where, "dtype", dtype)
    return TrainingQuantisation(
        loaded_in=loaded,
        dtype=None if dtype is None else known[dtype],
        skipped=_names(raw, "llm_int8_skip_modules", where),
        modules=_names(raw, "quantized_modules", where),
        evidence=evidence,
    )


def parse_card(text: str, *, where: str) -> TrainingQuantisation | None:
    """Reads what PEFT writes into the card of an adapter that it saves.

    Returns:
        None where the card says nothing of it.

    Raises:
        InputError: A setting is not what bitsandbytes takes.
    """
    lines = iter(text.splitlines())
    if not any(line.rstrip().endswith(_CARD_MARK) for line in lines):
        return None
    raw: dict[str, Any] = {}
    for line in lines:
        match = _CARD_LINE.fullmatch(line.strip())
        if match is None:
            break
        raw[match[1]] = _card_value(match[2])
    return parse_settings(raw, where=where, evidence="card")


def _card_value(text: str) -> Any:
    """Returns what a value was before Python printed it: a truth, nothing, names, or text."""
    known = {"True": True, "False": False, "None": None}
    if text in known:
        return known[text]
    if text.startswith("[") and text.endswith("]"):
        return re.findall(r"['\"]([^'\"]*)['\"]", text)
    return text


def dequantised_tensors(
    tensors: Mapping[str, TensorRef], config: Mapping[str, Any], training: TrainingQuantisation
) -> dict[str, TensorRef]:
    """Returns a base's tensors with the linear weights as they were in training.

    Args:
        tensors: Of the 16-bit base.
        config: Its `config.json`.
        training: How it was loaded.
    """
    return {
        name: _as_loaded(ref, config, training) if _was_quantised(ref, training) else ref
        for name, ref in tensors.items()
    }


def _was_quantised(ref: TensorRef, training: TrainingQuantisation) -> bool:
    module = find_linear(ref)
    if training.modules is not None:
        return ref.name.removesuffix(".weight") in training.modules and len(ref.shape) == 2
    if module is None:
        return False
    if training.skipped is None:
        return not is_head(module)
    return not any(_names_module(skipped, module) for skipped in training.skipped)


def _names_module(skipped: str, module: str) -> bool:
    """A name stands for what begins with it, up to a dot, and for what ends with it."""
    starts = module == skipped or module.startswith(f"{skipped.removesuffix('.')}.")
    return starts or module.endswith(skipped)


def _as_loaded(
    ref: TensorRef, config: Mapping[str, Any], training: TrainingQuantisation
) -> QuantisedRef:
    transposed = is_transposed(config, ref.name.removesuffix(".weight"))
    if training.loaded_in == "int8":
        encoding: EightBitLoad | FourBitLoad = EightBitLoad(ref, transposed)
    else:
        kind, _, double = training.loaded_in.partition("-")
        encoding = FourBitLoad(
            ref, "nf4" if kind == "nf4" else "fp4", bool(double), training.dtype, transposed
        )
    return QuantisedRef(ref.name, ref.file, ref.offset, ref.dtype, ref.shape, encoding)


def _four_bit_name(raw: Mapping[str, Any], where: str) -> LoadedIn:
    kind, double = raw.get("bnb_4bit_quant_type", "fp4"), raw.get("bnb_4bit_use_double_quant")
    name = f"{kind}-double" if double is True else kind
    for known in LOADED_IN:
        if name == known:
            return known
    raise _wrong(where, "bnb_4bit_quant_type", kind)


def _names(raw: Mapping[str, Any], field: str, where: str) -> tuple[str, ...] | None:
    value = raw.get(field)
    if value is None:
        return None
    if (
        isinstance(value, list)
        and len(value) <= _MAX_MODULES
        and all(isinstance(item, str) and _PLAIN_NAME.fullmatch(item) for item in value)
    ):
        return tuple(value)
    raise _wrong(where, field, value)


def _wrong(where: str, field: str, found: Any) -> InputError:
    return InputError(
        f"it cannot be read how the base was quantised in training: {field!r}",
        where=where,
        expected="what transformers' BitsAndBytesConfig takes, modules by name",
        found=repr(found)[:80],
        hint=_HINT,
    )
