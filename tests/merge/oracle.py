"""Base and adapter of a tiny family, merged by a release and by PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from packager.mergefolder import merge_to_folder
from packager.progress import Silent
from tests.merge.families import answer, load, load_tuned, save_adapter

SHARD_BYTES = 5 << 30


@dataclass(frozen=True)
class Pair:
    """A base and an adapter for it."""

    family: str
    base: Path
    adapter: Path
    folder: Path


def save_pair(family: str, base: Path, folder: Path, **lora: Any) -> Pair:
    return Pair(family, base, save_adapter(family, base, folder / "adapter", **lora), folder)


def merge(pair: Pair, out: Path | None = None) -> Path:
    merged = out or pair.folder / "merged"
    merge_to_folder(str(pair.base), pair.adapter, merged, SHARD_BYTES, Silent())
    return merged


def check_against_peft(pair: Pair, merged: Path) -> None:
    """Compares every tensor with PEFT's merge, and the reloaded model with PEFT's own answer."""
    tuned = load_tuned(pair.family, pair.base, pair.adapter)
    truth = answer(tuned)
    before = load_file(pair.base / "model.safetensors")
    ours = load_file(merged / "model.safetensors")
    tuned.merge_and_unload().save_pretrained(pair.folder / "peft")
    theirs = load_file(pair.folder / "peft" / "model.safetensors")
    assert ours.keys() == theirs.keys() == before.keys()
    changed = 0
    for name, tensor in ours.items():
        # PEFT computes the update in float32.
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=2e-6, msg=name)
        is_changed = not torch.equal(theirs[name], before[name])
        assert is_changed or torch.equal(tensor, before[name]), name
        changed += is_changed
    assert changed
    effect = (answer(load(pair.family, pair.base)) - truth).norm()
    assert effect > 0.01 * truth.norm(), "the adapter has next to no effect"
    assert (answer(load(pair.family, merged)) - truth).norm() < 1e-4 * effect
