"""Mean error of merged tensors against the float64 truth: ours beside PEFT's, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from packager.adapter import read_adapter
from packager.base import read_base
from packager.rowreader import read_rows

_FLOAT32_UNIT = 2.0**-24


@dataclass(frozen=True)
class Accuracy:
    """The comparison of two merged folders.

    Attributes:
        merged: Tensors that a delta was merged into.
        worse: Of them, those where our mean error is above PEFT's by more than float32 can tell.
        excess: Largest of our mean error over PEFT's, minus one.
        ratio: Our mean error over PEFT's, over all of them.
        kept: Untouched tensors.
        changed: Of them, those whose bytes are not the base's.
    """

    merged: int
    worse: int
    excess: float
    ratio: float
    kept: int
    changed: int


def compare_accuracy(base_dir: Path, adapter_dir: Path, ours: Path, theirs: Path) -> Accuracy:
    """Compares every tensor of two merged folders with base + adapter in float64."""
    base, spec = read_base(base_dir), read_adapter(adapter_dir)
    own, other = read_base(ours), read_base(theirs)
    modules = {f"{name}.weight": module for name, module in spec.modules.items()}
    worse = kept = changed = 0
    excess = -1.0
    totals = [0.0, 0.0]
    for name, ref in base.tensors.items():
        found = read_rows(own.tensors[name], 0, ref.shape[0])
        weight = read_rows(ref, 0, ref.shape[0])
        module = modules.get(name)
        if module is None:
            kept += 1
            changed += not torch.equal(found.view(torch.int16), weight.view(torch.int16))
            continue
        lora_a = read_rows(module.lora_a, 0, module.rank).double()
        lora_b = read_rows(module.lora_b, 0, ref.shape[0]).double()
        truth = weight.double() + module.scale * (lora_b @ lora_a)
        mine = float((found.double() - truth).abs().mean())
        yours = read_rows(other.tensors[name], 0, ref.shape[0]).double()
        peft = float((yours - truth).abs().mean())
        excess = max(excess, mine / peft - 1)
        # Both add in float32 and round once: where a sum lies so near to the middle between two
        # values that its last bit decides, each errs by chance, by less than that bit.
        worse += mine > peft * (1 + _FLOAT32_UNIT)
        totals = [totals[0] + mine, totals[1] + peft]
    return Accuracy(len(modules), worse, excess, totals[0] / totals[1], kept, changed)
