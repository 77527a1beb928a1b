"""Bases that are stored quantised, and the values that they stand for as a model of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tests.matrix.architecture import Architecture
from tests.quantisation.stored import edit_config, edit_tensors, scale_blocks

_BLOCK = 16
_FP8 = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [_BLOCK, _BLOCK],
}  # fmt: skip

Store = Callable[[Architecture, Path, Path], Any]


def _by_bitsandbytes(**settings: Any) -> Store:
    def store(row: Architecture, plain: Path, out: Path) -> Any:
        model = getattr(transformers, row.saved_class or row.auto).from_pretrained(
            plain, quantization_config=transformers.BitsAndBytesConfig(**settings)
        )
        model.save_pretrained(out)
        return _as_plain(row, plain, model)

    return store


def _as_plain(row: Architecture, plain: Path, stored: Any) -> Any:
    """Puts values into the classes that the architecture has; bitsandbytes knows Linear only."""
    model = row.load(plain)
    modules = dict(model.named_modules())
    for name, layer in stored.named_modules():
        values = _values(layer)
        if values is not None and name in modules:  # a head of another task has no place
            turned = isinstance(modules[name], Conv1D)
            modules[name].weight.data = values.T.contiguous() if turned else values
    return model


def _values(layer: Any) -> Tensor | None:
    """What a layer of bitsandbytes multiplies with, in float32."""
    if isinstance(layer, Linear4bit):
        state = copy.copy(layer.weight.quant_state)
        state.dtype = torch.float32
        return dequantize_4bit(layer.weight.data, state)
    if isinstance(layer, Linear8bitLt):
        return layer.weight.CB.float() * (layer.weight.SCB.float() / 127)[:, None]
    return None


def _store_fp8(row: Architecture, plain: Path, out: Path) -> Any:
    """Every adapted matrix in fp8 with a scale for each block."""
    out.mkdir()
    for file in plain.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    changes: dict[str, Tensor | None] = {}
    for name, weight in load_file(out / "model.safetensors").items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and module.rpartition(".")[2] in row.linear and weight.dim() == 2:
            floats, scales = scale_blocks(weight, _BLOCK, _BLOCK)
            changes |= {name: floats, f"{name}_scale_inv": scales}
    edit_tensors(out, changes)
    edit_config(out, quantization_config=_FP8)
    return row.load(out).float()  # transformers leaves what is not quantised in bfloat16


def _store_mxfp4(row: Architecture, plain: Path, out: Path) -> Any:
    """Every stack of experts in MXFP4, of random bytes, so that all values occur."""
    out.mkdir()
    for file in plain.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    random = torch.Generator().manual_seed(2)
    tensors = load_file(out / "model.safetensors")
    for name, weight in list(tensors.items()):
        if name.endswith(row.experts or ("/",)):
            experts, rows, columns = weight.shape
            size = (experts, columns, rows // 32)
            bytes_of_pairs = torch.randint(256, (*size, 16), generator=random)
            exponents = torch.randint(120, 125, size, generator=random)
            tensors[f"{name}_blocks"] = bytes_of_pairs.to(torch.uint8)
            tensors[f"{name}_scales"] = exponents.to(torch.uint8)
            del tensors[name]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    edit_config(out, quantization_config={"quant_method": "mxfp4"})
    return row.load(out).float()  # transformers leaves what is not quantised in bfloat16


STORES: dict[str, Store] = {
    "nf4": _by_bitsandbytes(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ),
    "int8": _by_bitsandbytes(load_in_8bit=True),
    "fp8": _store_fp8,
    "mxfp4": _store_mxfp4,
}
"""Kind of base → (architecture, its bfloat16 base, folder to make) → its values in float32."""
