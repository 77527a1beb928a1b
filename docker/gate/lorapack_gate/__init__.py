"""The gate of a vLLM bundle: keys, doors, limits, and a probe that asks every adapter.

Standard library only; it runs inside vLLM's own server process.
"""

from lorapack_gate.gate import Gate

__all__ = ["Gate"]
