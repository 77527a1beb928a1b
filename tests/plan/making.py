"""Adapters that PEFT saves with nothing left at zero, and plans of merging them."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from packager.gather import gather
from packager.plan import ReleaseOptions, plan_release
from packager.progress import Silent


def save_changed(tuned: PeftModel, out: Path) -> Path:
    """Gives everything that is trained other values and saves the adapter; returns its folder."""
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    tuned.save_pretrained(out)
    return out


def plan(base: Path, adapter: Path) -> None:
    """Plans the merged model."""
    options = ReleaseOptions(targets=("merged",), license="mit")
    gathered = gather(
        ((None, adapter),), base=str(base), license_id="mit", targets=("merged",), progress=Silent()
    )
    plan_release(gathered.adapters, gathered.base, options)
