"""JSON as Go's encoder writes it, so that documents equal those that Ollama itself makes. Pure.

Source: Go 1.26, encoding/json: appendString with HTML escaping, floatEncoder, and Encoder.Encode,
which ends a document with a newline; ollama v0.33.0-rc2, go.mod: go 1.26.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_LEAST_PLAIN, _LEAST_LARGE = 1e-6, 1e21


def encode_go(value: Json) -> bytes:
    """Returns one line of JSON with its newline; mappings keep their order.

    Args:
        value: What to encode. Every number is one of 64 bits with a point, as Go reads numbers
            whose type is not known; sizes fit into it exactly up to 2⁵³.
    """
    return (_encode(value) + "\n").encode()


def _encode(value: Json) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).translate(_ESCAPES)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return _encode_number(float(value))
    if isinstance(value, Mapping):
        inner = ",".join(f"{_encode(key)}:{_encode(item)}" for key, item in value.items())
        return "{" + inner + "}"
    return "[" + ",".join(map(_encode, value)) + "]"


def _encode_number(value: float) -> str:
    """The shortest digits that give the number back, as both languages choose them."""
    if value == 0 or _LEAST_PLAIN <= abs(value) < _LEAST_LARGE:
        return format(Decimal(repr(value)).normalize(), "f")
    return re.sub(r"e([+-])0(\d)$", r"e\1\2", repr(value))
