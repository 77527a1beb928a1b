"""Quantised checkpoints as transformers, bitsandbytes and others write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from packager.base import read_base
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.values import open_values


def quantise_base(base: Path, out: Path, **settings: Any) -> Path:
    """Writes the bitsandbytes checkpoint of a base; returns `out`.

    Args:
        base: A checkpoint directory.
        out: The directory to make.
        **settings: Of `BitsAndBytesConfig`.
    """
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**settings), local_files_only=True
    )
    model.save_pretrained(out)
    for file in base.iterdir():
        is_weights = ".safetensors" in file.name
        if not (out / file.name).exists() and not is_weights:
            (out / file.name).write_bytes(file.read_bytes())
    return out


def read_values(base: Path) -> dict[str, Tensor]:
    """Reads every tensor of a base as this program sees it, quantised ones in float32."""
    plain = {name: value for file in base.glob("*.safetensors")
             for name, value in load_file(file).items()}  # fmt: skip
    found = {}
    for name, ref in read_base(base).tensors.items():
        if isinstance(ref, QuantisedRef):
            rows = ref.shape[0] if len(ref.shape) < 3 else ref.shape[0] * ref.shape[1]
            found[name] = open_values(ref).read(0, rows).view(ref.shape)
        else:
            found[name] = plain[name]
    return found


def edit_config(base: Path, **changes: Any) -> None:
    """Changes fields of `config.json`; None removes one."""
    path = base / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def edit_tensors(base: Path, changes: dict[str, Tensor | None]) -> None:
    """Replaces tensors of a checkpoint in one file; None removes one."""
    path = base / "model.safetensors"
    tensors = load_file(path) | changes
    kept = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    save_file(kept, path, metadata={"format": "pt"})


def scale_blocks(weight: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Quantises a matrix to fp8 with a scale for each block: (floats, inverse scales, float32)."""
    rows, columns = weight.shape
    floats = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // height), -(-columns // width))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            place = (slice(row * height, (row + 1) * height),
                     slice(column * width, (column + 1) * width))  # fmt: skip
            block = weight[place].float()
            scales[row, column] = block.abs().max() / 448
            floats[place] = (block / scales[row, column]).to(torch.float8_e4m3fn)
    return floats, scales
