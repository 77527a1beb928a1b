"""safetensors headers: any bytes, any JSON, near misses, and damage to real files.

The oracle is the safetensors library: what we take, it takes too, and reads the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from packager.adapter import read_adapter
from packager.base import read_base
from packager.cli.message import render_error
from packager.dtype import ITEM_BYTES
from packager.errors import LorapackError
from packager.preparation import ReleaseRequest, plan_request
from packager.progress import Silent
from packager.release import release
from packager.tensorfile import TensorFile, TensorRef, read_header, render_header
from tests.fuzz.conftest import Sources
from tests.fuzz.mutation import VALUES, damaged_bytes, fuzz

Header = dict[str, Any]


def _write(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + data)
    return path


def _read(path: Path) -> TensorFile | None:
    """Reads a header; a refusal has to be a known failure that can be said."""
    try:
        return read_header(path)
    except LorapackError as problem:
        said = render_error(problem)
        said.encode("utf-8")
        assert "\nhint: " in said
        return None


def _check_against_oracle(path: Path, ours: TensorFile) -> None:
    with safe_open(path, "numpy") as theirs:
        assert set(theirs.keys()) == {ref.name for ref in ours.tensors}
        for ref in ours.tensors:
            found = theirs.get_slice(ref.name)
            assert found.get_shape() == list(ref.shape)
            assert found.get_dtype() == ref.dtype


_TENSORS = st.dictionaries(
    st.text(max_size=12, alphabet=st.characters(exclude_categories=["Cs"])).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(
        st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=4).map(tuple)
    ),
    max_size=6,
)


@fuzz(200)
@given(
    _TENSORS,
    st.dictionaries(st.text(max_size=5, alphabet='aé語"'), st.text(max_size=5, alphabet="a\n語")),
)
def test_what_is_written_is_read_back_by_both(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    rows = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    header = render_header(rows, metadata)
    size = sum(ref.nbytes for ref in _refs(header, rows, path))
    path.write_bytes(header + bytes(size))
    ours = read_header(path)
    assert [(ref.name, ref.dtype, ref.shape) for ref in _in_order(ours, rows)] == rows
    assert ours.metadata == metadata
    _check_against_oracle(path, ours)


def _refs(header: bytes, rows: list[Any], path: Path) -> Any:
    return [TensorRef(name, path, len(header), dtype, shape) for name, dtype, shape in rows]


def _in_order(file: TensorFile, rows: list[Any]) -> Any:
    """Tensors without elements share their place, where the file keeps no order."""
    by_name = {ref.name: ref for ref in file.tensors}
    return [by_name[name] for name, _, _ in rows]


@st.composite
def _near_misses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A header that is right but for up to two fields."""
    header: Header = {}
    position = 0
    for name, (dtype, shape) in draw(_TENSORS).items():
        size = ITEM_BYTES[dtype]
        for count in shape:
            size *= count
        offsets = [position, position + size]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position += size
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.just({"format": "pt"}) | VALUES)
    for _ in range(draw(st.integers(0, 2))):
        _spoil(draw, header)
    raw = json.dumps(header, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    extra = draw(st.sampled_from([0, 0, 0, 1, -1]))
    return raw + b" " * draw(st.integers(0, 9)), bytes(max(0, position + extra))


_SPOILT_NUMBERS = st.sampled_from([-1, 1, 2, 3, True, 1.0, 1 << 62, 1 << 63, 1 << 64, "1", None])


def _spoil(draw: st.DrawFn, header: Header) -> None:
    names = [name for name in header if isinstance(header[name], dict)]
    if not names:
        return
    entry = header[draw(st.sampled_from(names))]
    key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
    value = entry.get(key)
    if isinstance(value, list) and value and draw(st.booleans()):
        value[draw(st.integers(0, len(value) - 1))] = draw(_SPOILT_NUMBERS)
    elif key == "dtype":
        entry[key] = draw(st.sampled_from(["F4", "F6_E3M2", "f32", "", "BF16", "I64", 1, None]))
    elif draw(st.booleans()):
        entry[key] = draw(VALUES)
    else:
        entry.pop(key, None)


@fuzz(600)
@given(_near_misses())
def test_near_miss_is_refused_or_right(
    tmp_path_factory: pytest.TempPathFactory, parts: tuple[bytes, bytes]
) -> None:
    path = _write(tmp_path_factory.getbasetemp() / "near.safetensors", *parts)
    ours = _read(path)
    if ours is not None:
        _check_against_oracle(path, ours)


@fuzz(400)
@given(st.binary(max_size=40), st.binary(max_size=20), st.integers(0, (1 << 64) - 1) | st.none())
def test_any_bytes_are_a_header_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes, length: int | None
) -> None:
    path = _write(tmp_path_factory.getbasetemp() / "any.safetensors", header, data, length)
    ours = _read(path)
    if ours is not None:
        _check_against_oracle(path, ours)


def _entry(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2), **more: Any) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


REFUSED: dict[str, tuple[Header, int]] = {
    "true as a number": ({"a": _entry(shape=[True], offsets=[0, 1])}, 1),
    "float as a number": ({"a": _entry(shape=[2.0])}, 2),
    "float as an offset": ({"a": _entry(offsets=[0.0, 2.0])}, 2),
    "negative shape": ({"a": _entry(shape=[-2, -1])}, 2),
    "negative offset": ({"a": _entry(offsets=[-2, 0])}, 0),
    "product beyond 64 bits": ({"a": _entry(shape=[1 << 40, 1 << 40])}, 2),
    "product that wraps to the size": ({"a": _entry(shape=[1 << 32, 1 << 32, 2])}, 2),
    "product that wraps to zero": ({"a": _entry(shape=[1 << 32, 1 << 32], offsets=[0, 0])}, 0),
    "size beyond 64 bits": ({"a": _entry(shape=[1 << 64])}, 2),
    "infinity": ({"a": _entry(shape=[float("inf")])}, 2),
    "not a number": ({"a": _entry(offsets=[0, float("nan")])}, 2),
    "hole": ({"a": _entry(), "b": _entry(offsets=[3, 5])}, 5),
    "hole at the start": ({"a": _entry(offsets=[1, 3])}, 3),
    "overlap": ({"a": _entry(), "b": _entry(offsets=[1, 3])}, 3),
    "the same data": ({"a": _entry(), "b": _entry()}, 2),
    "ends before the file": ({"a": _entry()}, 3),
    "ends after the file": ({"a": _entry()}, 1),
    "begin after end": ({"a": _entry(offsets=[2, 0])}, 2),
    "three offsets": ({"a": _entry(offsets=[0, 1, 2])}, 2),
    "four bits": ({"a": _entry(dtype="F4", shape=[4])}, 2),
    "dtype in small letters": ({"a": _entry(dtype="u8")}, 2),
    "dtype is a list": ({"a": _entry(dtype=["U8"])}, 2),
    "shape is a number": ({"a": _entry(shape=2)}, 2),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 2]}}, 2),
    "entry is a list": ({"a": []}, 0),
    "metadata is no text": ({"__metadata__": {"a": 1}}, 0),
    "metadata is a list": ({"__metadata__": []}, 0),
    "half a character": ({"\ud800": _entry()}, 2),
    "endless name": ({"n" * 2000: _entry()}, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_header_is_refused(tmp_path: Path, name: str) -> None:
    header, size = REFUSED[name]
    path = _write(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(size))
    assert _read(path) is None


@pytest.mark.parametrize(
    "header",
    [
        {"a": _entry(shape=[], offsets=[0, 1])},
        {"a": _entry(shape=[0, 7], offsets=[0, 0]), "b": _entry(shape=[1], offsets=[0, 1])},
        {"a": _entry(shape=[1 << 61, 0], offsets=[0, 0]), "b": _entry(shape=[1], offsets=[0, 1])},
        {"": _entry(shape=[1], offsets=[0, 1])},
        {"語\n": _entry(shape=[1, 1, 1, 1, 1, 1, 1, 1], offsets=[0, 1])},
    ],
)
def test_odd_but_right_header_is_taken(tmp_path: Path, header: Header) -> None:
    path = _write(tmp_path / "x.safetensors", json.dumps(header).encode(), b"\0")
    ours = _read(path)
    assert ours is not None
    _check_against_oracle(path, ours)


def test_oracle_refuses_what_we_refuse_for_its_sizes(tmp_path: Path) -> None:
    """Our refusals are the format's own, apart from bounds on names and dtypes."""
    ours_only = {"endless name", "half a character", "four bits"}
    for name, (header, size) in REFUSED.items():
        path = _write(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(size))
        try:
            with safe_open(path, "numpy") as file:
                list(file.keys())
            taken = True
        except (SafetensorError, OSError):
            taken = False
        assert not taken or name in ours_only, name


def test_damaged_weights_never_break_a_release(copies: Sources) -> None:
    """Bytes of real shards and of a real adapter, header and data."""
    paths = [
        *sorted(copies.base.glob("*.safetensors"))[:2],
        copies.adapter / "adapter_model.safetensors",
    ]
    whole = {path: path.read_bytes() for path in paths}
    damaged = st.sampled_from(paths).flatmap(
        lambda path: st.tuples(st.just(path), damaged_bytes(whole[path]))
    )

    @fuzz(150)
    @given(damaged, st.integers(0, 7))
    def check(change: tuple[Path, bytes], dice: int) -> None:
        path, data = change
        path.write_bytes(data)
        request = ReleaseRequest(
            ((None, copies.adapter),), copies.root / "out", base=str(copies.base), behaviour=False
        )
        try:
            if dice == 0:
                release(request, Silent())
                shutil.rmtree(copies.root / "out")
            else:
                plan_request(request, Silent())
        except LorapackError as problem:
            render_error(problem).encode("utf-8")
        finally:
            path.write_bytes(whole[path])
        assert sorted(p.name for p in copies.root.iterdir()) == ["adapter", "base", "bundle"]

    check()
    assert read_base(copies.base).tensors
    assert read_adapter(copies.adapter).modules
