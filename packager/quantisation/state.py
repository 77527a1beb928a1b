"""What bitsandbytes stores beside a 4-bit weight: JSON in a tensor of bytes; writer and parser.

Source: bitsandbytes 0.50, functional.py, QuantState.as_dict and from_dict; utils.py,
pack_dict_to_tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.dtype import MERGEABLE, TORCH_NAMES
from packager.errors import BaseError
from packager.quantisation.encoding import FourBitKind
from packager.untrusted import parse_json_object

STATE_MARK = ".quant_state.bitsandbytes__"
"""Stands between the name of a weight and its kind, in the name of its state."""

MAX_STATE_BYTES = 1 << 16
_KINDS: tuple[FourBitKind, ...] = ("nf4", "fp4")
_LEAST_BLOCK, _LARGEST_BLOCK = 32, 1 << 20
"""Fewer values in a block would have scales outweigh what they scale."""


@dataclass(frozen=True)
class NestedState:
    """How the scales of a weight are quantised.

    Attributes:
        block: Scales in a block.
        offset: Added to every scale.
    """

    block: int
    offset: float


@dataclass(frozen=True)
class FourBitState:
    """How a weight is quantised.

    Attributes:
        kind: Which sixteen values.
        dtype: Of the weight before, as safetensors names it.
        shape: Of the weight.
        block: Values in a block.
        nested: How its scales are quantised, or None where they are not.
    """

    kind: FourBitKind
    dtype: str
    shape: tuple[int, ...]
    block: int
    nested: NestedState | None = None


def render_state(state: FourBitState) -> bytes:
    """Returns the bytes of the tensor that describes a weight."""
    fields: dict[str, Any] = {
        "quant_type": state.kind,
        "blocksize": state.block,
        "dtype": TORCH_NAMES[state.dtype],
        "shape": list(state.shape),
    }
    if state.nested is not None:
        fields |= {
            "nested_blocksize": state.nested.block,
            "nested_dtype": "float32",
            "nested_offset": state.nested.offset,
        }
    return json.dumps(fields).encode()


def parse_state(data: bytes, *, where: str) -> FourBitState:
    """Parses the bytes of the tensor that describes a weight.

    Raises:
        BaseError: A field is missing or not what bitsandbytes writes.
        InputError: Not JSON.
    """
    raw = parse_json_object(data, where=where, constants=False)
    kind, dtype, shape = raw.get("quant_type"), raw.get("dtype"), raw.get("shape")
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= 3
        or not all(type(size) is int and 0 < size < 1 << 40 for size in shape)
    ):
        raise _wrong(where, "shape", raw)
    known = next((name for name in MERGEABLE if TORCH_NAMES[name] == dtype), None)
    if known is None:
        raise _wrong(where, "dtype", raw)
    for name in _KINDS:
        if name == kind:
            block = _block(raw, "blocksize", where)
            return FourBitState(name, known, tuple(shape), block, _parse_nested(raw, where))
    raise _wrong(where, "quant_type", raw)


def _parse_nested(raw: Mapping[str, Any], where: str) -> NestedState | None:
    if "nested_blocksize" not in raw:
        return None
    offset = raw.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, int | float):
        raise _wrong(where, "nested_offset", raw)
    if math.isfinite(offset) and abs(offset) < 1e38:
        return NestedState(_block(raw, "nested_blocksize", where), float(offset))
    raise _wrong(where, "nested_offset", raw)


def _block(raw: Mapping[str, Any], field: str, where: str) -> int:
    value = raw.get(field)
    if type(value) is int and _LEAST_BLOCK <= value <= _LARGEST_BLOCK:
        return value
    raise _wrong(where, field, raw)


def _wrong(where: str, field: str, raw: Mapping[str, Any]) -> BaseError:
    return BaseError(
        f"a quantised weight is not described as bitsandbytes does: {field!r}",
        where=where,
        found=repr(raw.get(field))[:80],
        hint="download the base again, or give its 16-bit original with --base",
    )
