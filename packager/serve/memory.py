"""How much memory servers on a processor take for keys and values.

vLLM by itself takes 0.92 of the whole memory, whoever else needs it: two servers never start, and
neither does one beside a browser.

Source: vLLM 0.32.0, v1/worker/cpu_worker.py, CPUWorker: `--gpu-memory-utilization` of the total,
unless `--kv-cache-memory-bytes` says how much; platforms/cpu.py: VLLM_CPU_KVCACHE_SPACE, in GiB,
takes the place of the latter.
"""

from __future__ import annotations

from collections.abc import Mapping

from packager.errors import InputError
from packager.verify.memory import available_bytes

KV_FLAG = "--kv-cache-memory-bytes"
KV_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"

_MOST_BYTES = 4 << 30
"""For one server; what containers take by default."""
_LEAST_BYTES = 256 << 20
_RUNTIME_BYTES = 3 << 29
"""Of one server beside its weights; measured 1.2 GB over its three processes."""


def share_kv_cache(
    environment: Mapping[str, str], weights: int, servers: int, *, available: int | None = None
) -> int:
    """Returns the bytes that each server takes for keys and values.

    What the user says is for all servers together. By default it is half of what the weights
    leave of the memory that is free now, and no more than 4 GiB for each.

    Args:
        environment: Which may say how much, in GiB.
        weights: Bytes of all weights together.
        servers: How many there are.
        available: Free bytes, or None to look.

    Raises:
        InputError: The variable holds no number.
    """
    told = environment.get(KV_VARIABLE, "")
    if told and (not told.isdecimal() or int(told[:9]) < 1):
        raise InputError(
            "no size for keys and values",
            where=KV_VARIABLE,
            expected="a whole number of GiB, for all servers together",
            found=told[:80],
            hint=f"set it to 4, or unset {KV_VARIABLE}",
        )
    if told:
        return (int(told[:9]) << 30) // servers
    free = available_bytes() if available is None else available
    left = free - weights - servers * _RUNTIME_BYTES
    return max(_LEAST_BYTES, min(_MOST_BYTES, left // 2 // servers))
