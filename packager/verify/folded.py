"""The normalised form of an adapter against the adapter itself."""

from __future__ import annotations

import torch
from torch import Tensor

from packager.adapter import AdapterSpec, LoraModule
from packager.rowreader import read_rows
from packager.tensorfile import TensorRef
from packager.verify.weights import unit_of


def check_folded(original: AdapterSpec, folded: AdapterSpec) -> tuple[str, ...]:
    """Checks that a normalised adapter makes the same ΔW, to one float32 rounding of lora_B.

    Args:
        original: As trained.
        folded: The normalised form.
    """
    names = original.modules.keys()
    problems = [f"{name} is missing in the normalised form" for name in names - folded.modules]
    problems += [f"{name} of the normalised form is left over" for name in folded.modules - names]
    problems += [f"{name} of the normalised form is left over" for name in folded.leftover]
    for name in names & folded.modules.keys():
        problems += _check_folded_module(original.modules[name], folded.modules[name])
    return tuple(sorted(problems))


def _check_folded_module(trained: LoraModule, folded: LoraModule) -> list[str]:
    if folded.scale != 1:
        return [f"{folded.module} of the normalised form has scale {folded.scale:g}, not 1"]
    problems = []
    for ref, found_ref, scale in (
        (trained.lora_a, folded.lora_a, 1.0),
        (trained.lora_b, folded.lora_b, trained.scale),
    ):
        wanted, found = _whole(ref) * scale, _whole(found_ref)
        fits = all(map(int.__le__, wanted.shape, found.shape))
        if fits:
            padded = torch.zeros_like(found)
            padded[: wanted.shape[0], : wanted.shape[1]] = wanted
            fits = bool(((found - padded).abs() <= 0.5 * unit_of(padded, "F32")).all())
        if not fits:
            problems.append(f"{ref.name} of the normalised form is not the scaled original")
    return problems


def _whole(ref: TensorRef) -> Tensor:
    return read_rows(ref, 0, ref.shape[0]).double()
