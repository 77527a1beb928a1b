"""Calling what needs torch in a process of its own.

The kernel counts the memory of a parent at the moment of a fork to its child: a benchmark that held
torch itself would find at least that much in everything it starts.
"""

from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def apart(module: str, function: str, *arguments: Any) -> Any:
    """Returns what a function returns, called by name in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_call, module, function, *arguments).result()


def _call(module: str, function: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments)
