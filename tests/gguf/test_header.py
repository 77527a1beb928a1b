"""The start of a file: writer and parser agree with each other and with gguf's own reader."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.errors import InputError
from packager.gguf.block import BLOCKS, data_bytes, inner_shape
from packager.gguf.header import padded, parse_header, render_header
from packager.gguf.value import GgufKey, KeyType, Scalar

_RANGES: dict[KeyType, tuple[int, int]] = {
    f"{sign}int{bits}": (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}  # type: ignore[assignment]
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


def values_of(kind: KeyType) -> st.SearchStrategy[Scalar]:
    if kind in _RANGES:
        return st.integers(*_RANGES[kind])
    if kind == "string":
        return st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
    return st.booleans() if kind == "bool" else st.floats(width=32, allow_nan=False)


KINDS: list[KeyType] = [*_RANGES, "float32", "float64", "bool", "string"]
KEYS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(
        GgufKey,
        NAMES.filter(lambda name: name != "general.alignment"),
        st.just(kind),
        values_of(kind) | st.lists(values_of(kind), max_size=5).map(tuple),
    )
)
TENSORS = st.tuples(
    NAMES,
    st.sampled_from(list(BLOCKS)),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 3),
).map(lambda item: (item[0], item[1], (*item[2], item[3] * BLOCKS[item[1]].values)))


@given(st.lists(KEYS, max_size=6), st.lists(KEYS, max_size=3), st.lists(TENSORS, max_size=6))
def test_round_trip(shared: list[GgufKey], own: list[GgufKey], tensors: list[tuple]) -> None:
    data = render_header(tuple(shared), own, tensors)
    size = len(data) + sum(padded(data_bytes(kind, shape)) for _, kind, shape in tensors)
    header = parse_header(data, where="x.gguf", size=size)
    assert header.keys == (*shared, *own)
    assert header.data_start == len(data)
    assert [(item.name, item.type, item.shape) for item in header.tensors] == [
        (name, kind, inner_shape(shape)) for name, kind, shape in tensors
    ]
    assert all(item.offset % 32 == 0 for item in header.tensors)


def test_gguf_reads_what_is_written(tmp_path: Path) -> None:
    keys = (
        GgufKey("general.architecture", "string", "llama"),
        GgufKey("a.flags", "bool", (True, False)),
        GgufKey("a.epsilon", "float32", 1e-6),
        GgufKey("a.tokens", "string", ("", "é", "日本")),
        GgufKey("a.large", "uint64", 2**63),
    )
    data = render_header(keys, [], [("t", "Q8_0", (3, 64)), ("u", "F32", (5,))])
    path = tmp_path / "x.gguf"
    path.write_bytes(data + bytes(padded(3 * 68) + padded(20)))
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    assert found["a.flags"] == [True, False]
    assert math.isclose(found["a.epsilon"], 1e-6, rel_tol=1e-7)
    assert found["a.tokens"] == ["", "é", "日本"]
    assert found["a.large"] == 2**63
    assert [(t.name, t.shape.tolist(), t.tensor_type.name) for t in reader.tensors] == [
        ("t", [64, 3], "Q8_0"), ("u", [5], "F32"),
    ]  # fmt: skip


WHOLE = render_header(
    (GgufKey("a", "string", ("x",) * 9), GgufKey("b", "uint32", 7)),
    (),
    [("t", "Q4_K", (2, 256)), ("u", "F32", (5,))],
)


@settings(max_examples=300)
@given(st.integers(0, len(WHOLE)), st.binary(max_size=9), st.booleans())
def test_damage_is_at_most_an_input_error(place: int, other: bytes, cut: bool) -> None:
    data = WHOLE[:place] + other + (b"" if cut else WHOLE[place + len(other) :])
    with suppress(InputError):
        assert parse_header(data, where="x.gguf", size=len(data) + 400).tensors is not None


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GGML" + WHOLE[4:], "GGML"),
        (b"GGUF\x01" + WHOLE[5:], "GGUF"),
        (WHOLE[:8] + b"\xff" * 8 + WHOLE[16:], str(2**64 - 1)),
        (WHOLE[:40], "40 bytes in all"),
        (WHOLE, "bytes"),
    ],
    ids=["magic", "version", "count", "cut", "data"],
)
def test_what_is_wrong_is_said(data: bytes, found: str) -> None:
    with pytest.raises(InputError, match="the GGUF file is damaged") as caught:
        parse_header(data, where="x.gguf", size=len(data))
    assert found in caught.value.found or found in caught.value.expected
    assert caught.value.where == "x.gguf"
