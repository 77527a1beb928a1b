"""Ray with Serve LLM beside the stock vLLM that tests keep; installed once."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import venv
from pathlib import Path

from packager.container.ray import RAY_VERSION
from tests.models import cache_folder
from tests.vllm_engine import keep_vllm

# As ray/Dockerfile of a bundle installs them.
PACKAGES = (f"ray[serve]=={RAY_VERSION}", "jsonref==1.1.0", "pandas==3.1.1", "pyarrow==26.0.1")
_INSTALL_SECONDS = 1800


def keep_ray() -> Path:
    """Returns the Python of an environment with Ray that also sees vLLM; made on first use."""
    engine = keep_vllm().parents[1]
    key = hashlib.sha256(f"{engine}\n{PACKAGES}".encode()).hexdigest()[:16]
    place = cache_folder() / f"ray-{key}"
    if not place.is_dir():
        with tempfile.TemporaryDirectory(prefix=".ray.", dir=cache_folder()) as folder:
            aside = Path(folder) / "whole"
            venv.create(aside, with_pip=True, symlinks=True)
            (packages,) = aside.glob("lib/python3.*/site-packages")
            (further,) = engine.glob("lib/python3.*/site-packages")
            (packages / "vllm.pth").write_text(f"{further}\n", encoding="utf-8")
            python = aside / "bin" / "python"
            pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
            subprocess.run([*pip, *PACKAGES], check=True, timeout=_INSTALL_SECONDS)
            try:
                # Its scripts name the old place; they are run as modules.
                aside.rename(place)
            except OSError:
                assert place.is_dir()
    return place / "bin" / "python"
