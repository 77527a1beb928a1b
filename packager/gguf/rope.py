"""Rotary position embeddings: keys for their scaling, and the factors that are tensors."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from packager.gguf.setting import Settings, as_number, setting_error
from packager.gguf.value import GgufKey, GgufTensor

_MAX_FACTORS = 1 << 16
_SMALLEST = 1e-9


def rope_keys(architecture: str, settings: Settings) -> tuple[GgufKey, ...]:
    """Returns the keys of RoPE scaling and of its base frequencies.

    Source: llama.cpp 0c1e57098, conversion/base.py, `TextModel.set_gguf_parameters`.

    Raises:
        InputError: A parameter is not a number.
    """
    rope = settings.full_rope
    keys = list(_scaling_keys(architecture, rope))
    base = rope.get("rope_theta")
    if base is not None:
        keys.append(_float(f"{architecture}.rope.freq_base", base, "rope_theta"))
    sliding = settings.rope.get("sliding_attention")
    if isinstance(sliding, Mapping) and sliding.get("rope_theta") is not None:
        keys.append(_float(f"{architecture}.rope.freq_base_swa", sliding["rope_theta"], "rope"))
    return tuple(keys)


def llama3_factors(settings: Settings) -> tuple[GgufTensor, ...]:
    """Returns `rope_freqs.weight` for Llama 3's scaling, or nothing.

    Each step is rounded to float32, as the converter's is. Its power function may differ in the
    last place, since no standard fixes that one.

    Source: llama.cpp 0c1e57098, conversion/llama.py, `generate_extra_tensors`.

    Raises:
        InputError: A parameter is not a number.
    """
    rope = settings.full_rope
    if str(rope.get("rope_type", "")).lower() != "llama3":
        return ()
    size = settings.head_size
    if not 0 < size <= 2 * _MAX_FACTORS:
        raise setting_error("head_dim", f"at most {2 * _MAX_FACTORS}", size)
    defaults = {
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    base, factor, low, high, length = (
        _positive(rope.get(name, default), name) for name, default in defaults.items()
    )
    if low >= high:
        raise setting_error("high_freq_factor", f"more than {low}", high)
    factors = []
    for index in range(0, size, 2):
        # A base as float32 holds it to a power of at most 1 stays within float32.
        frequency = _round(1.0 / _round(base ** _round(index / size)))
        wave = _round(2 * math.pi / frequency)
        factors.append(_llama3_factor(wave, factor, low, high, length))
    return (GgufTensor("rope_freqs.weight", (len(factors),), values=tuple(factors)),)


def long_factors(settings: Settings, rotary_size: int) -> tuple[GgufTensor, ...]:
    """Returns the factor tensors of Phi's LongRoPE, or nothing.

    Source: llama.cpp 0c1e57098, conversion/phi.py, `generate_extra_tensors`.

    Args:
        settings: Of the model.
        rotary_size: Rotated part of a head.

    Raises:
        InputError: The lists do not have half as many numbers.
    """
    if not settings.rope.get("long_factor"):
        return ()
    tensors = []
    for kind in ("long", "short"):
        stated = settings.rope.get(f"{kind}_factor")
        if not isinstance(stated, list) or len(stated) * 2 != rotary_size:
            found = f"{len(stated)} numbers" if isinstance(stated, list) else stated
            raise setting_error(f"{kind}_factor", f"{rotary_size // 2} numbers", found)
        values = tuple(_round(as_number(value, f"{kind}_factor")) for value in stated)
        tensors.append(GgufTensor(f"rope_factors_{kind}.weight", (len(values),), values=values))
    return tuple(tensors)


def long_attention_factor(settings: Settings) -> float | None:
    """Returns how much Phi's LongRoPE scales attention, or None without factors.

    Raises:
        InputError: A length is not a positive number, or the kind of scaling is unknown.
    """
    if not settings.rope.get("long_factor"):
        return None
    kind = settings.rope.get("rope_type")
    if kind not in {"su", "yarn", "longrope"}:
        raise setting_error("rope_scaling", "longrope", kind)
    original = _positive(
        settings.rope.get("original_max_position_embeddings"), "original_max_position_embeddings"
    )
    scale = settings.count("max_position_embeddings") / original
    if scale <= 1.0:
        return 1.0
    if original <= 1.0:
        raise setting_error("original_max_position_embeddings", "more than 1", original)
    return math.sqrt(1 + math.log(scale) / math.log(original))


def _scaling_keys(architecture: str, rope: Mapping[str, Any]) -> tuple[GgufKey, ...]:
    kind, factor = rope.get("rope_type"), rope.get("factor")
    prefix = f"{architecture}.rope.scaling"
    if kind in {"su", "longrope"}:
        return (GgufKey(f"{prefix}.type", "string", "longrope"),)
    if kind not in {"linear", "yarn"} or factor is None:
        return ()
    keys = [
        GgufKey(f"{prefix}.type", "string", str(kind)),
        _float(f"{prefix}.factor", factor, "factor"),
    ]
    if kind == "yarn":
        length = rope.get("original_max_position_embeddings")
        if type(length) is not int or length < 1:
            raise setting_error("original_max_position_embeddings", "a whole number", length)
        keys.append(GgufKey(f"{prefix}.original_context_length", "uint32", length))
        keys += _yarn_keys(prefix, rope)
    return tuple(keys)


def _yarn_keys(prefix: str, rope: Mapping[str, Any]) -> list[GgufKey]:
    values = {
        "yarn_ext_factor": rope.get("extrapolation_factor"),
        "yarn_attn_factor": rope.get("attention_factor", rope.get("attn_factor")),
        "yarn_beta_fast": rope.get("beta_fast"),
        "yarn_beta_slow": rope.get("beta_slow"),
    }
    return [
        _float(f"{prefix}.{name}", value, name)
        for name, value in values.items()
        if value is not None
    ]


def _llama3_factor(wave: float, factor: float, low: float, high: float, length: float) -> float:
    if wave < length / high:
        return 1.0
    if wave > length / low:
        return _round(factor)
    smooth = _round(_round(_round(length / wave) - low) / (high - low))
    return _round(1 / _round(_round(_round(1 - smooth) / factor) + smooth))


def _float(name: str, value: Any, setting: str) -> GgufKey:
    return GgufKey(name, "float32", as_number(value, setting))


def _positive(value: Any, name: str) -> float:
    number = as_number(value, name)
    if number < _SMALLEST:
        raise setting_error(name, f"a number from {_SMALLEST} on", value)
    return number


def _round(value: float) -> float:
    """Rounds to float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
