"""Element types of safetensors files: names, sizes, and what other formats call them."""

from __future__ import annotations

from typing import Literal

from packager.errors import InputError

Dtype = Literal[
    "BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64",
    "F8_E5M2", "F8_E4M3", "F8_E8M0", "F16", "BF16", "F32", "F64", "C64",
]  # fmt: skip
"""A safetensors element type. Source: safetensors 0.8, src/tensor.rs, enum Dtype (whole bytes)."""

ITEM_BYTES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element."""

MERGEABLE: tuple[Dtype, ...] = ("F32", "BF16", "F16")
"""Types of base weights that a delta is merged into."""

TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16",
    "I32": "int32", "U32": "uint32", "I64": "int64", "U64": "uint64",
    "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""Names of the same types in torch and in `config.json`."""

MANTISSA_BITS: dict[str, int] = {"F32": 23, "BF16": 7, "F16": 10}
"""Stored bits of the significand: one unit in the last place is 2^-bits of the binade."""

_BY_TORCH_NAME = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


def parse_torch_dtype(name: str) -> str:
    """Returns the safetensors name of `float32`, `bfloat16` or `float16`.

    Raises:
        InputError: Another name.
    """
    found = _BY_TORCH_NAME.get(name)
    if found in MERGEABLE:
        return found
    raise InputError(
        "unknown output dtype",
        expected="keep, float32, bfloat16 or float16",
        found=repr(name)[:60],
        hint="leave --dtype out to keep the base's",
    )
