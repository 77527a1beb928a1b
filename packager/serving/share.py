"""What part of a GPU's memory each of several servers takes, so that one GPU may hold all."""

from __future__ import annotations

from collections.abc import Sequence

from packager.serving.parallel import DEFAULT_GPU_BYTES

USED_SHARE = 0.9
"""Of a GPU's memory, for all servers together."""
WORKSPACE_BYTES = 2 << 30
"""For activations, CUDA graphs and the libraries of each server."""

_FILLED_SHARE = 0.8
"""Most of that which weights and workspace may take: the rest is for keys and values."""
_STEPS = 1000


def share_memory(loads: Sequence[int], gpu_bytes: int | None) -> tuple[float | None, ...]:
    """Returns the part of a GPU's memory that each server takes, in proportion to what it needs.

    Args:
        loads: Bytes of each server's weights, its adapters' included.
        gpu_bytes: Memory of one GPU; None means 80 GB.

    Returns:
        None for each where there is only one, or where one GPU does not hold them all: then each
        needs GPUs of its own, and takes what the engine does by itself.
    """
    needs = [load + WORKSPACE_BYTES for load in loads]
    limit = DEFAULT_GPU_BYTES if gpu_bytes is None else gpu_bytes
    if len(loads) == 1 or sum(needs) > limit * USED_SHARE * _FILLED_SHARE:
        return (None,) * len(loads)
    total = sum(needs)
    return tuple(max(1, int(_STEPS * USED_SHARE * need / total)) / _STEPS for need in needs)
