"""Level `weights` of an adapter as a server loads it: it makes the ΔW that was trained."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from packager.adapter import AdapterSpec, LoraModule, read_adapter
from packager.digest import hash_file
from packager.rowreader import read_rows
from packager.serving.path import adapter_path, original_path
from packager.serving.value import ServedFactor, ServedLora
from packager.tensorfile import TensorRef
from packager.verify.proof import WeightsCheck
from packager.verify.weights import unit_of

_FILES = ("adapter_config.json", "adapter_model.safetensors")
ROUNDING = 2.0**-24
"""Largest relative difference of ΔW that rounding B once to float32 makes."""


def check_served_weights(
    folder: Path, name: str, lora: ServedLora, spec: AdapterSpec
) -> WeightsCheck:
    """Compares the normalised adapter with the one that was trained, in float64.

    Args:
        folder: Of the server.
        name: Of the adapter.
        lora: What the normalised file holds.
        spec: The adapter as trained.

    Raises:
        LorapackError: A file cannot be read.
    """
    served = read_adapter(folder / adapter_path(name))
    problems = _check_original(folder / original_path(name), spec)
    problems += [f"{place} is left over" for place in served.leftover]
    trained = {ref.name: ref for ref in spec.tensors}
    stored = {ref.name: ref for ref in served.tensors}
    problems += [f"{place} is left over" for place in sorted(stored.keys() - _names(lora))]
    halves = list(zip(lora.factors[::2], lora.factors[1::2], strict=True))
    squares, differences = [0.0], [0.0]
    for pair, module in zip(halves, spec.modules.values(), strict=True):
        lost = [factor.name for factor in pair if not _fits(factor, stored.get(factor.name))]
        if lost:
            problems.append(f"{lost[0]} is missing, or of another type or shape")
            continue
        found = served.config.scale_of(_module_name(pair[0]))
        size, difference = _compare(module, trained, stored, pair, found)
        squares.append(size)
        differences.append(difference)
        if not math.sqrt(difference) <= 2 * ROUNDING * math.sqrt(size):
            problems.append(f"{_module_name(pair[0])} makes another ΔW than was trained")
    count = len(lora.factors)
    return WeightsCheck(
        checked=len(squares) * 2 - 2,
        total=count,
        by_rule={"normalised": (len(squares) * 2 - 2, count)},
        adapter_tensors_used=len(spec.tensors) - len(spec.leftover),
        adapter_tensors_total=len(spec.tensors),
        figures=(),
        problems=tuple(problems),
        delta_difference=math.sqrt(math.fsum(differences) / (math.fsum(squares) or 1.0)),
    )


def _check_original(folder: Path, spec: AdapterSpec) -> list[str]:
    pairs = [(folder / name, spec.directory / name) for name in _FILES]
    return [
        f"{kept.name} beside the normalised form is not the file as trained"
        for kept, trained in pairs
        if hash_file(kept) != hash_file(trained)
    ]


def _names(lora: ServedLora) -> set[str]:
    return {factor.name for factor in lora.factors}


def _module_name(factor: ServedFactor) -> str:
    return factor.name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")


def _fits(factor: ServedFactor, ref: TensorRef | None) -> bool:
    return ref is not None and (ref.dtype, ref.shape) == (factor.dtype, factor.shape)


def _compare(
    module: LoraModule,
    trained: dict[str, TensorRef],
    stored: dict[str, TensorRef],
    pair: tuple[ServedFactor, ServedFactor],
    scale: float,
) -> tuple[float, float]:
    """Returns ‖ΔW‖² as trained, and ‖ΔW' − ΔW‖², where ΔW' is that of the normalised form.

    Both are B·A with the same A, or the difference counts as infinite: then they are sums over
    the columns of B weighted by A·Aᵀ, and no matrix as large as W is made.
    """
    lora_a = _whole(trained[module.lora_a.name])
    lora_b = _whole(trained[module.lora_b.name]) * module.scale
    served_a = _whole(stored[pair[0].name])
    served_b = _whole(stored[pair[1].name]) * scale
    rank = lora_a.shape[0]
    gram = lora_a @ lora_a.T
    size = _weighted_square(lora_b, gram)
    same = torch.equal(served_a[:rank], lora_a) and not bool(served_a[rank:].any())
    if not same or bool(served_b[:, rank:].any()):
        return size, math.inf
    allowed = (unit_of(lora_b, "F32") / 2) * (1 + 1e-9)
    exact = bool(((served_b[:, :rank] - lora_b).abs() <= allowed).all())
    return size, _weighted_square(served_b[:, :rank] - lora_b, gram) if exact else math.inf


def _weighted_square(lora_b: Tensor, gram: Tensor) -> float:
    return max(0.0, float(((lora_b @ gram) * lora_b).sum()))


def _whole(ref: TensorRef) -> Tensor:
    return read_rows(ref, 0, ref.shape[0]).double()
