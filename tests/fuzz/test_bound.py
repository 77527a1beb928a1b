"""Inputs that are made to take memory or time: each is answered within a bound of both.

Every case runs in a process of its own with real limits: of address space and of CPU time.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.folders import pair, write_adapter

SECONDS = 20
HEADERS = {
    # name: (what the header holds, how often it is repeated, what ends it), about 100 MB each
    "spaces": ("", " ", ""),
    "brackets": ("", "[", ""),
    "braces": ("", '{"":', ""),
    "empty lists": ('{"a":[', "[],", "[]]}"),
    "empty mappings": ('{"a":[', "{},", "{}]}"),
    "small numbers": ('{"a":[', "1,", "1]}"),
    "floats": ('{"a":[', "1e1,", "1]}"),
    "texts": ('{"a":[', '"é",', "1]}"),
    "digits": ('{"a":', "9", "}"),
    "one name": ('{"', "a", '":1}'),
    "escapes": ('{"a":"', "\\ud800", '"}'),
}
_READ_HEADER = """
import sys
from pathlib import Path
from packager.errors import InputError
from packager.tensorfile import read_header
try:
    read_header(Path(sys.argv[1]))
except InputError as problem:
    print(problem)
"""
_TENSORS_TWICE = """
import json, sys
from pathlib import Path
from packager.errors import InputError
from packager.tensorfile import parse_header
names = [f'"{number}":0' for number in range(600_000)]
raw = ("{" + ",".join([*names, names[-1]]) + "}").encode()
try:
    parse_header(raw, path=Path("x"), size=len(raw) + 8)
except InputError as problem:
    print(problem)
"""
_MANY_TENSORS = """
import sys
from pathlib import Path
from packager.tensorfile import parse_header
entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
raw = ("{" + ",".join(f'"{number}":{entry}' for number in range(300_000)) + "}").encode()
print(len(parse_header(raw, path=Path("x"), size=len(raw) + 8).tensors), "tensors")
"""
_READ_ADAPTER = """
import sys
from pathlib import Path
from packager.adapter import read_adapter
from packager.errors import LorapackError
try:
    spec = read_adapter(Path(sys.argv[1]))
    print(sum(spec.config.selects(name) for name in spec.modules), "selected")
except LorapackError as problem:
    print(problem)
"""


def _run(code: str, *arguments: str, mib: int) -> str:
    """Runs Python code within an address space of so many MiB and `SECONDS` of CPU time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", HEADERS)
def test_header_of_100_mb(tmp_path: Path, name: str) -> None:
    start, again, end = HEADERS[name]
    size = 99_999_000
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        body = (
            start + again * ((size - len(start) - len(end)) // len(again.encode())) + end
        ).encode()
        file.write(len(body).to_bytes(8, "little"))
        file.write(body)
    said = _run(_READ_HEADER, str(path), mib=1024)
    path.unlink()
    assert "x.safetensors" in said


def test_header_length_alone_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((99_000_000).to_bytes(8, "little"))
        file.truncate(1 << 40)  # a sparse file of a terabyte
    assert "not valid JSON" in _run(_READ_HEADER, str(path), mib=512)


def test_key_that_stands_twice_among_many(tmp_path: Path) -> None:
    assert "'599999'" in _run(_TENSORS_TWICE, mib=1024)


def test_many_tensors_are_read(tmp_path: Path) -> None:
    assert _run(_MANY_TENSORS, mib=1536) == "300000 tensors\n"


@pytest.mark.parametrize(
    "pattern",
    [
        r"(([a-z]|[a-z_]|\.|\d)+)+(?<=\d{9})",
        "(?:" * 3000 + "x" + ")" * 3000,
        "(?:(?:(?:x{1,1000}){1,1000}){1,1000}){1,1000}",
        "x{99999999999}",
        "(?:a|" * 1000 + "b" + ")" * 1000,
        "|".join("abcdefghij" for _ in range(1400)),
        r"(?<n>x)\g<n>",
        "[[a]",
        "{e<=3}",
        "a" * 20_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "layers_pattern"])
def test_pattern_of_an_adapter(tmp_path: Path, field: str, pattern: str) -> None:
    """In one run for each field and pattern: 200 modules, each of which is matched with it."""
    modules = [f"model.layers.{number}.self_attn.q_proj" for number in range(200)]
    shapes = {name: shape for module in modules for name, shape in pair(module).items()}
    value = {"rank_pattern": {pattern: 4}}.get(field, pattern)
    config = {"target_modules": ["q_proj"], "layers_to_transform": [1], field: value}
    adapter = write_adapter(tmp_path / "adapter", shapes, **config)
    said = _run(_READ_ADAPTER, str(adapter), mib=1024)
    assert "selected" in said or "a module pattern of the adapter cannot be used" in said


def test_many_modules_share_one_bound(tmp_path: Path) -> None:
    """Each match ends well within its own time; all of them together would take a minute."""
    shapes = {
        name: shape for number in range(300) for name, shape in pair(f"{'a' * 20}.{number}").items()
    }
    pattern = r"([a-z]|[a-z])+\.\d+(?<=\d{9})"
    adapter = write_adapter(tmp_path / "adapter", shapes, rank_pattern={pattern: 8})
    said = _run(_READ_ADAPTER, str(adapter), mib=1024)
    assert "a module pattern of the adapter cannot be used" in said
