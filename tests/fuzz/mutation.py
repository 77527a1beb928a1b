"""How documents and bytes are damaged."""

from __future__ import annotations

import copy
import json
import math
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_EXAMPLES = "LORAPACK_FUZZ_EXAMPLES"


def fuzz(examples: int) -> settings:
    """Settings of a fuzz test: the same examples each time, but for those who ask for more.

    `LORAPACK_FUZZ_EXAMPLES=20 pytest tests/fuzz` tries twenty times as many, random ones.
    """
    factor = int(os.environ.get(_EXAMPLES, "1"))
    return settings(
        max_examples=examples * factor,
        derandomize=_EXAMPLES not in os.environ,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


NASTY = st.sampled_from(
    [
        "", "\ud800", "\udfff\ud800", "\0", "../../etc/passwd", "/etc/passwd", "a" * 5000,
        "\x1b[2J",
        "\u202e", "\u2028", "{{ 7 * 7 }}", "{% for x in y %}", "<script>", "---\n", "- a\n- b",
        "~nobody-has-this-name/x", "NaN", "null", "🏴‍☠️", "语言", "C:\\x", "(a+)+$", "[", "(?P<x",
        -1, 0, 1, 1 << 31, 1 << 63, 10**30, 10**4000, 0.5, -0.0, 1e308, math.nan, math.inf,
        -math.inf, True, False, None, [], {}, [[]], {"": {}}, [[[[[]]]]], {"a": [1, {"b": None}]},
    ]
)  # fmt: skip
"""Values that programs trip over."""

KEYS = st.text(max_size=8) | NASTY.filter(lambda item: isinstance(item, str))
"""Any JSON key."""

_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = NASTY | st.recursive(
    _PLAIN | NASTY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
"""Any JSON value."""


def damaged_documents(document: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A document with up to three values replaced, removed, added or doubled, as JSON."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        damaged = copy.deepcopy(document)
        for _ in range(draw(st.integers(1, 3))):
            _damage_once(draw, damaged)
        text = json.dumps(damaged, ensure_ascii=draw(st.booleans()))
        return text.encode("utf-8", "surrogatepass")

    return damage()


def _damage_once(draw: st.DrawFn, document: dict[str, Any]) -> None:
    holder: Any = document
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = draw(st.sampled_from(keys[:40] + keys[-40:]))
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or draw(st.integers(0, 3)) == 0:
            break
        holder = inner
    action = draw(st.sampled_from(["replace", "replace", "remove", "add", "again"]))
    if action == "remove":
        del holder[key]
    elif action == "add" and isinstance(holder, dict):
        holder[draw(KEYS)] = copy.deepcopy(draw(VALUES))
    elif action == "again" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(draw(VALUES))


def damaged_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with some flipped, cut out, doubled or put in, or cut short."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            if changed:
                _damage_bytes_once(draw, changed)
        return bytes(changed)

    return damage()


def _damage_bytes_once(draw: st.DrawFn, data: bytearray) -> None:
    # Most of what matters stands at the start.
    last = draw(st.sampled_from([min(16, len(data)), min(400, len(data)), len(data)]))
    place = draw(st.integers(0, last - 1))
    action = draw(st.sampled_from(["flip", "set", "cut", "double", "put", "end"]))
    if action == "flip":
        data[place] ^= 1 << draw(st.integers(0, 7))
    elif action == "set":
        data[place] = draw(st.integers(0, 255))
    elif action == "cut":
        del data[place : place + draw(st.integers(1, 40))]
    elif action == "double":
        data[place:place] = data[place : place + draw(st.integers(1, 40))]
    elif action == "put":
        data[place:place] = draw(st.binary(min_size=1, max_size=12))
    else:
        del data[place:]
