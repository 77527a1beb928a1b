"""Adapters and bases of other kinds than plain LoRA on 16 bits, in the wanted sizes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.bench.shape import RANK, SHAPES

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
NF4 = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}  # fmt: skip


def make_dora(name: str, folder: Path, lora: Path) -> Path:
    """Makes a DoRA of a LoRA: a magnitude for each row of every module; returns its folder."""
    out = folder / f"adapter-dora-{name}"
    if (out / _CONFIG).exists():
        return out
    tensors = load_file(lora / _WEIGHTS)
    random = torch.Generator().manual_seed(2)
    for key in [key for key in tensors if key.endswith(".lora_B.weight")]:
        rows = tensors[key].shape[0]
        magnitude = 1.0 + 0.1 * torch.rand(rows, generator=random)
        tensors[key.replace(".lora_B.weight", ".lora_magnitude_vector")] = magnitude
    return _write(out, tensors, _config(lora) | {"use_dora": True})


def make_loha(name: str, folder: Path, lora: Path) -> Path:
    """Makes a LoHa on the modules of a LoRA, merged through PEFT's own layers, one at a time."""
    out = folder / f"adapter-loha-{name}"
    if (out / _CONFIG).exists():
        return out
    random = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for module, (rows, columns) in SHAPES[name].linears().items():
        prefix = f"base_model.model.{module}.hada"
        for half in ("w1", "w2"):
            tensors[f"{prefix}_{half}_a"] = torch.randn(rows, RANK, generator=random) * 0.1
            tensors[f"{prefix}_{half}_b"] = torch.randn(RANK, columns, generator=random) * 0.1
    config = {key: value for key, value in _config(lora).items() if key != "lora_alpha"}
    return _write(out, tensors, config | {"peft_type": "LOHA", "alpha": RANK})


def make_four_bit_base(name: str, folder: Path, plain: Path) -> Path:
    """Makes the NF4 checkpoint of a base as bitsandbytes writes it.

    Weights of one shape are all the same: what they cost does not depend on their values.
    """
    from bitsandbytes.functional import quantize_4bit

    out = folder / f"base-nf4-{name}"
    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True)
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    made: dict[tuple[int, int], dict[str, Tensor]] = {}
    tensors = load_small(plain, set(map(_weight, SHAPES[name].linears())))
    for module, shape in SHAPES[name].linears().items():
        if shape not in made:
            count = math.prod(shape)
            values = noise.repeat(-(-count // noise.numel()))[:count].view(shape).bfloat16()
            packed, state = quantize_4bit(values, quant_type="nf4")
            made[shape] = {"": packed} | {
                f".{part}": value for part, value in state.as_dict(packed=True).items()
            }
        tensors |= {
            f"{_weight(module)}{part}": value.clone() for part, value in made[shape].items()
        }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((plain / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": NF4}), "utf-8")
    shutil.copy(plain / "README.md", out)
    return out


def load_small(base: Path, without: set[str]) -> dict[str, Tensor]:
    """Reads the tensors of a base but those that are named."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        tensors |= {key: value for key, value in load_file(file).items() if key not in without}
    return tensors


def _weight(module: str) -> str:
    return f"{module}.weight"


def _config(lora: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((lora / _CONFIG).read_text(encoding="utf-8"))
    return document


def _write(out: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / _WEIGHTS, metadata={"format": "pt"})
    (out / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return out
