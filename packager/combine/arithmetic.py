"""The factors of one module of several adapters made one pair.

The formulas are PEFT's own functions; what is around them follows its `add_weighted_adapter`.

Source: PEFT 0.21, tuners/lora/model.py, _generalized_task_arithmetic_weighted_adapter and
_svd_generalized_task_arithmetic_weighted_adapter; utils/merge_utils.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.utils import merge_utils
from torch import Tensor

from packager.combination import Combination

_SEEDS = 1 << 63


@dataclass(frozen=True)
class Part:
    """One adapter's pair of a module.

    Attributes:
        lora_a: Shape (rank, in_features), float32.
        lora_b: Shape (out_features, rank), float32.
        scale: Of their product.
        weight: Of the adapter.
    """

    lora_a: Tensor
    lora_b: Tensor
    scale: float
    weight: float


def combine_parts(
    parts: Sequence[Part], combination: Combination, module: str, rank: int
) -> tuple[Tensor, Tensor]:
    """Makes one pair, whose scale is one.

    Args:
        parts: Of the adapters that have the module, in order.
        combination: How.
        module: Its name, of which the seed of random methods depends.
        rank: Of the result; zeros fill up what is smaller.

    Returns:
        A of shape (rank, in_features) and B of shape (out_features, rank), float32.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(module_seed(combination.seed, module))
        if combination.method == "cat":
            lora_a, lora_b = _concatenate(parts)
        elif combination.decomposes:
            lora_a, lora_b = _decompose(parts, combination, rank)
        else:
            lora_a, lora_b = _of_factors(parts, combination)
    return _pad(lora_a, 0, rank), _pad(lora_b, 1, rank)


def module_seed(seed: int, module: str) -> int:
    """Returns the seed of a module: that of the whole, moved by the module's name.

    So each module is drawn alike in whatever order modules are made.
    """
    return (seed + zlib.crc32(module.encode())) % _SEEDS


def _concatenate(parts: Sequence[Part]) -> tuple[Tensor, Tensor]:
    lora_a = torch.cat([part.lora_a * part.weight * part.scale for part in parts], dim=0)
    return lora_a, torch.cat([part.lora_b for part in parts], dim=1)


def _of_factors(parts: Sequence[Part], combination: Combination) -> tuple[Tensor, Tensor]:
    """A and B by themselves, each with the root of the weight; the sign is A's."""
    weights = [part.weight * part.scale for part in parts]
    roots = torch.tensor([math.sqrt(abs(weight)) for weight in weights])
    signs = torch.tensor([1.0 if weight >= 0 else -1.0 for weight in weights])
    lora_a = _arithmetic([part.lora_a for part in parts], roots * signs, combination)
    lora_b = _arithmetic([part.lora_b for part in parts], roots, combination)
    return lora_a, lora_b


def _decompose(parts: Sequence[Part], combination: Combination, rank: int) -> tuple[Tensor, Tensor]:
    """The updates themselves; of the result, the largest singular values."""
    deltas = [part.lora_b @ part.lora_a * part.scale for part in parts]
    weights = torch.tensor([part.weight for part in parts])
    left, values, right = torch.linalg.svd(
        _arithmetic(deltas, weights, combination), full_matrices=False
    )
    return right[:rank], left[:, :rank] * values[:rank]


def _arithmetic(tensors: list[Tensor], weights: Tensor, combination: Combination) -> Tensor:
    density = 1.0 if combination.density is None else combination.density
    sign = combination.majority_sign_method
    pruning = combination.pruning
    made: Tensor
    if pruning == "ties":
        made = merge_utils.ties(tensors, weights, density, sign)
    elif pruning == "dare_linear":
        made = merge_utils.dare_linear(tensors, weights, density)
    elif pruning == "dare_ties":
        made = merge_utils.dare_ties(tensors, weights, density, sign)
    elif pruning == "magnitude_prune":
        made = merge_utils.magnitude_prune(tensors, weights, density)
    else:
        made = merge_utils.task_arithmetic(tensors, weights)
    return made


def _pad(factor: Tensor, axis: int, rank: int) -> Tensor:
    missing = rank - factor.shape[axis]
    if missing <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[axis] = missing
    return torch.cat([factor, torch.zeros(shape)], dim=axis)
