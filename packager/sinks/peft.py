"""Adapters kept separate: the configuration that pins the base, and the normalised form.

The normalised form computes the same ΔW for loaders that read only `r` and `lora_alpha`: the
scale of every module is folded into its lora_B, all ranks are padded with zeros to the largest,
and `lora_alpha` equals `r`, so that the scale is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from packager.adapter import AdapterSpec, LoraModule
from packager.base import BaseRef
from packager.errors import output_error
from packager.rowreader import read_rows
from packager.sinks.safetensors import METADATA
from packager.tensorfile import render_header

PINNED_FIELDS = frozenset({"base_model_name_or_path", "revision", "inference_mode"})
"""Fields of the configuration that a release sets; all others stay as trained."""
FOLDED_FIELDS = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
"""Fields that differ in the normalised form besides."""


def render_pinned_config(spec: AdapterSpec, base: BaseRef) -> str:
    """Returns `adapter_config.json` naming the exact base.

    On the Hub that is repository and commit; for a base that is only here, its folder.
    """
    return _render({**spec.config.raw, **_pin(base)})


def render_folded_config(spec: AdapterSpec, base: BaseRef) -> str:
    """Returns `adapter_config.json` of the normalised form."""
    rank = max(spec.ranks)
    plain = {
        "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    return _render({**spec.config.raw, **_pin(base), **plain})


def write_folded_weights(spec: AdapterSpec, path: Path) -> None:
    """Writes the normalised form in float32, one tensor at a time.

    Raises:
        OutputError: The file cannot be written.
    """
    rank = max(spec.ranks)
    tensors = [
        item
        for module in spec.modules.values()
        for item in (
            (module.lora_a.name, "F32", (rank, module.lora_a.shape[1])),
            (module.lora_b.name, "F32", (module.lora_b.shape[0], rank)),
        )
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(render_header(tensors, METADATA))
            for values in _fold(spec, rank):
                file.write(values.numpy().tobytes())
    except OSError as problem:
        raise output_error(problem, path) from problem


def _fold(spec: AdapterSpec, rank: int) -> Iterator[torch.Tensor]:
    for module in spec.modules.values():
        yield _padded_a(module, rank)
        lora_b = torch.zeros((module.lora_b.shape[0], rank), dtype=torch.float64)
        lora_b[:, : module.rank] = read_rows(module.lora_b, 0, module.lora_b.shape[0])
        yield (lora_b * module.scale).float()


def _padded_a(module: LoraModule, rank: int) -> torch.Tensor:
    lora_a = torch.zeros((rank, module.lora_a.shape[1]), dtype=torch.float32)
    lora_a[: module.rank] = read_rows(module.lora_a, 0, module.rank)
    return lora_a


def _pin(base: BaseRef) -> dict[str, Any]:
    return {
        "base_model_name_or_path": base.repo or str(base.directory),
        "revision": base.commit,
        "inference_mode": True,
    }


def _render(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
