"""How much memory a behaviour check needs, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path

_ROWS = 256
"""Upper bound of the token positions of one prompt with its continuation."""

_ROW_BYTES = 4 + 4 + 3 * 8
"""Per logit of a prompt: model output, its copy from disk, and three float64 work arrays."""

_RUNTIME_BYTES = 5 << 28
"""torch, transformers and PEFT with their buffers; measured 0.6 to 1.1 GB, by their versions."""


def behaviour_bytes(parameter_count: int, vocabulary: int) -> int:
    """Estimates the peak memory of `measure_truth` followed by `check_merged`, in bytes.

    The two models are never loaded together. Each holds its weights in float32; a tenth is added
    for the adapter, for tensors in conversion and for activations. The logits of one prompt are
    worked on at a time; those of the others lie in a temporary file.

    Args:
        parameter_count: Parameters of the base.
        vocabulary: Width of the logits.
    """
    weights = parameter_count * 4
    return weights + weights // 10 + _ROWS * vocabulary * _ROW_BYTES + _RUNTIME_BYTES


def llama_bytes(file_bytes: int, vocabulary: int) -> int:
    """Estimates the peak memory of comparing a GGUF file with a truth, in bytes.

    llama.cpp maps the file, and repacks most of its blocks into memory of its own where the
    processor has use for that; it keeps the logits of one passage. This process works on them as
    it does on those of a merged model.

    Args:
        file_bytes: Of all files of the model.
        vocabulary: Width of the logits.
    """
    return 2 * file_bytes + _ROWS * vocabulary * (4 + _ROW_BYTES) + _RUNTIME_BYTES


def available_bytes(
    *,
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Returns the memory that can be taken without swapping, in bytes.

    A container's limit counts where it is lower than what the machine has.

    Source: Linux, Documentation/filesystems/proc.rst (MemAvailable, in kB) and
    Documentation/admin-guide/cgroup-v2.rst (memory.max, memory.current, inactive_file of
    memory.stat, which the kernel gives back under pressure).
    """
    return min(_machine_bytes(meminfo), *_cgroup_bytes(cgroup))


def _machine_bytes(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = {line.partition(":")[0]: line.split()[1] for line in lines if ":" in line}
    return int(fields["MemAvailable"]) * 1024


def _cgroup_bytes(cgroup: Path) -> tuple[int, ...]:
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return (1 << 62,)
    if limit == "max":
        return (1 << 62,)
    cached = dict(line.split() for line in stat.splitlines()).get("inactive_file", "0")
    return (max(0, int(limit) - used + int(cached)),)
