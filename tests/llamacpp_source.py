"""llama.cpp's own converter, as an oracle: taken from PyPI once, run in a process of its own.

The source package of llama-cpp-python carries a llama.cpp checkout. Nothing of it is compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.models import cache_folder

VERSION = "0.3.36"

_ROOT = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
_WANTED = (
    "LICENSE",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/",
    "gguf-py/",
    "models/templates/",
)

# Runs the converter once for each job: importing torch and transformers takes most of the time.
_DRIVER = """
import json, runpy, sys, traceback
root, jobs = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [root + "/gguf-py", root]
from conversion import base
known = base.TextModel.get_vocab_base_pre
def detect(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        if job["unknown_pre"]:
            return job["unknown_pre"]
        raise
base.TextModel.get_vocab_base_pre = detect
failures = {}
for job in jobs:
    sys.argv = ["convert_hf_to_gguf.py", job["model"], "--outfile", job["out"],
                "--outtype", job["outtype"], *(["--vocab-only"] if job["vocab_only"] else [])]
    try:
        runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
    except (Exception, SystemExit) as problem:
        if not isinstance(problem, SystemExit) or problem.code:
            failures[job["out"]] = traceback.format_exc()
print(json.dumps(failures))
"""


@dataclass(frozen=True)
class Conversion:
    """One run of the converter.

    Attributes:
        model: A checkpoint directory.
        out: The GGUF file to write.
        outtype: f32, f16, bf16 or q8_0.
        unknown_pre: What to take for `tokenizer.ggml.pre` where the hash is unknown, as it is
            for tokenizers that tests train; empty to let the converter fail.
        vocab_only: Whether to write keys alone; the model needs no weights.
    """

    model: Path
    out: Path
    outtype: str = "f32"
    unknown_pre: str = ""
    vocab_only: bool = False


def llamacpp_source() -> Path:
    """Returns the root of a llama.cpp checkout (scripts, no programs); fetched on first use."""
    place = cache_folder() / f"llama.cpp-of-llama-cpp-python-{VERSION}"
    if not place.is_dir():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".llamacpp.", dir=cache_folder()) as folder:
            whole = Path(folder) / "whole"
            _unpack(_download(Path(folder)), whole)
            try:
                whole.rename(place)
            except OSError:
                # Another test run unpacked the same at the same time.
                assert place.is_dir()
    return place


def convert_hf(model: Path, out: Path, outtype: str = "f32", *, unknown_pre: str = "") -> Path:
    """Converts a checkpoint with llama.cpp's converter and returns `out`."""
    convert_all([Conversion(model, out, outtype, unknown_pre)])
    return out


def convert_all(jobs: Sequence[Conversion]) -> None:
    """Converts checkpoints with llama.cpp's converter, in one process; all have to succeed."""
    failures = try_convert(jobs)
    assert not failures, "\n".join(failures.values())


def try_convert(jobs: Sequence[Conversion]) -> dict[Path, str]:
    """Converts checkpoints; returns the traceback of each that failed, by its `out`."""
    described = [{**asdict(job), "model": str(job.model), "out": str(job.out)} for job in jobs]
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(llamacpp_source()), json.dumps(described)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    failures = json.loads(done.stdout.splitlines()[-1])
    return {Path(out): text for out, text in failures.items()}


def _download(folder: Path) -> Path:
    # pip prepares the metadata of a source package, in an environment that it makes for that.
    name = "llama-cpp-python"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, "--quiet",
         "--disable-pip-version-check", "--dest", str(folder), f"{name}=={VERSION}"],
        check=True,
        timeout=600,
    )  # fmt: skip
    return folder / f"llama_cpp_python-{VERSION}.tar.gz"


def _unpack(archive: Path, out: Path) -> None:
    out.mkdir()
    with tarfile.open(archive) as file:
        members = []
        for member in file:
            inner = member.name.removeprefix(_ROOT)
            if inner != member.name and inner.startswith(_WANTED):
                members.append(member.replace(name=inner, deep=False))
        file.extractall(out, members, filter="data")
    assert (out / "convert_hf_to_gguf.py").is_file()
