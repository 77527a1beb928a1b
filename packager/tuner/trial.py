"""Trying a tuner before anything is written: names and shapes as they are, values made up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from packager.errors import LorapackError
from packager.rowreader import torch_dtype
from packager.tensorfile import TensorRef
from packager.tuner.host import ModuleJob, merge_module

_SEED = 0


@dataclass(frozen=True)
class Attempt:
    """A module to be tried.

    Attributes:
        module: Dotted name.
        parameters: Its own as the base has them, by name.
        tensors: The adapter's that it reads.
    """

    module: str
    parameters: Mapping[str, TensorRef]
    tensors: tuple[TensorRef, ...]


def try_tuner(base: Path, adapter: Path, attempts: Iterable[Attempt]) -> list[LorapackError]:
    """Merges the first module of each kind with made-up values.

    Args:
        base: Folder of the base.
        adapter: Folder of the adapter.
        attempts: All modules.

    Returns:
        Why PEFT does not merge the adapter; the first problem of each kind of module.
    """
    problems: dict[str, LorapackError] = {}
    tried: set[object] = set()
    for attempt in attempts:
        if _kind(attempt) in tried:
            continue
        tried.add(_kind(attempt))
        job = ModuleJob(
            base,
            adapter,
            attempt.module,
            {name: _noise(ref) for name, ref in attempt.parameters.items()},
            {ref.name: _blank(ref) for ref in attempt.tensors},
        )
        try:
            merge_module(job, torch.float32)
        except LorapackError as problem:
            problems.setdefault(f"{problem.what.split(' on module ')[0]}{problem.found}", problem)
    return list(problems.values())


def _kind(attempt: Attempt) -> object:
    """What modules of one kind have in common: their last name and all shapes."""
    return (
        attempt.module.rpartition(".")[2],
        tuple((name, ref.shape) for name, ref in sorted(attempt.parameters.items())),
        tuple((ref.dtype, ref.shape) for ref in attempt.tensors),
    )


def _noise(ref: TensorRef) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return torch.randn(ref.shape, generator=generator, dtype=torch.float32)


def _blank(ref: TensorRef) -> Tensor:
    """Values that are harmless as factors and as indices."""
    return torch.zeros(ref.shape, dtype=torch_dtype(ref.dtype))
