"""`quantization_config` of a base: which way its weights are stored, or why they cannot be read.

Source: transformers 5.23, utils/quantization_config.py, QuantizationMethod and the classes of
each method.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from packager.dtype import MERGEABLE, TORCH_NAMES
from packager.errors import BaseError

CONFIG_KEY = "quantization_config"
Scheme = Literal["bitsandbytes", "fp8", "mxfp4", "compressed-tensors"]

_NAMES: dict[str, Scheme] = {
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "fp8": "fp8",
    "mxfp4": "mxfp4",
    "compressed-tensors": "compressed-tensors",
}
_FLOAT_FORMATS = ("float-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "block")
_READ = "bitsandbytes (4 and 8 bits), fp8, mxfp4, or compressed-tensors in 8-bit floats"


def find_scheme(config: Mapping[str, Any]) -> Scheme | None:
    """Returns how a base's weights are stored, or None where they are plain or unreadable."""
    raw = _section(config)
    return None if raw is None or _problem(raw) else _NAMES.get(_method(raw))


def check_scheme(config: Mapping[str, Any], directory: Path) -> BaseError | None:
    """Returns why a quantised base cannot be read, or None where it can."""
    raw = config.get(CONFIG_KEY)
    if not raw or find_scheme(config) is not None:
        return None
    section = _section(config) or {}
    name = (_method(section) or "unnamed")[:40]
    return BaseError(
        f"the base is quantised in a way that lorapack does not read: {name}",
        where=str(directory / "config.json"),
        expected=_READ,
        found=_problem(section) or f"quant_method {name!r}",
        hint=f"give the 16-bit original of this base with --base: the repository that the {name} "
        "version was made from, as its card tells; the adapter fits it as well",
    )


def block_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns rows and columns that share a scale in fp8, or None for a scale for each matrix.

    Raises:
        BaseError: It is not two positive whole numbers.
    """
    raw = (_section(config) or {}).get("weight_block_size", (128, 128))
    return None if raw is None else _pair(raw)


def compressed_block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns rows and columns of a block of compressed-tensors, or None for another strategy.

    Raises:
        BaseError: It is not two positive whole numbers.
    """
    weights = _weights(_section(config) or {})
    if not weights or weights[0].get("strategy") != "block":
        return None
    return _pair(weights[0].get("block_structure"))


def value_dtype(config: Mapping[str, Any]) -> str:
    """Returns the type that a base's values have when they are loaded, as safetensors names it."""
    nested = config.get("text_config")
    for section in (config, nested if isinstance(nested, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            found = next((name for name in MERGEABLE if TORCH_NAMES[name] == section.get(key)), "")
            if found:
                return found
    return "BF16"


def _section(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    raw = config.get(CONFIG_KEY)
    return raw if isinstance(raw, dict) and raw else None


def _method(raw: Mapping[str, Any]) -> str:
    method = raw.get("quant_method")
    if method is None and (raw.get("load_in_4bit") or raw.get("load_in_8bit")):
        return "bitsandbytes"
    return str(method or "").lower()


def _weights(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns how the weights of each group of layers are stored."""
    groups = raw.get("config_groups")
    found: list[Mapping[str, Any]] = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        found.append(weights if isinstance(weights, dict) else {})
    return found


def _problem(raw: Mapping[str, Any]) -> str:
    """Says what of a known method is not read; empty where all of it is."""
    return _compressed_problem(raw) if _method(raw) == "compressed-tensors" else ""


def _compressed_problem(raw: Mapping[str, Any]) -> str:
    """Says what of a compressed-tensors configuration is not read; empty where all of it is."""
    weights = _weights(raw)
    if raw.get("format") not in _FLOAT_FORMATS or not weights:
        return f"compressed-tensors format {raw.get('format')!r:.60}"
    for item in weights:
        if item.get("type") != "float" or item.get("num_bits") != 8:
            return f"weights of type {item.get('type')!r:.20} in {item.get('num_bits')!r:.20} bits"
        if item.get("strategy") not in _STRATEGIES:
            return f"scales by {item.get('strategy')!r:.40}"
    if any(item.get("block_structure") != weights[0].get("block_structure") for item in weights):
        return "groups of layers with blocks of different sizes"
    return ""


def _pair(raw: Any) -> tuple[int, int]:
    if (
        isinstance(raw, (list, tuple))
        and len(raw) == 2
        and all(type(item) is int and 0 < item < 1 << 31 for item in raw)
    ):
        return raw[0], raw[1]
    raise BaseError(
        "the size of the blocks of a quantised base is not one",
        where="config.json",
        expected="two positive whole numbers, such as [128, 128]",
        found=repr(raw)[:80],
        hint="download the base again",
    )
