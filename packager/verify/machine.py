"""The libraries and the machine that a proof was made with."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packager import __version__

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "safetensors",
    "huggingface_hub",
    "xllamacpp",
)


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that take part in a release."""
    versions = {"lorapack": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_machine() -> str:
    """Returns processor, cores and memory in one line."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB"
