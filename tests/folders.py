"""Small adapter and base folders tensor by tensor, for what no trainer would write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from safetensors.numpy import save_file

Shapes = Mapping[str, tuple[int, ...]]
PREFIX = "base_model.model."
_LORA_A = ".lora_A.weight"


def write_tensors(path: Path, shapes: Shapes, *, dtype: DTypeLike = np.float32) -> Path:
    """Writes a safetensors file of random values."""
    generator = np.random.default_rng(len(shapes))
    tensors = {
        name: np.asarray(generator.standard_normal(shape)).astype(dtype)
        for name, shape in shapes.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def pair(module: str, rank: int = 4, width: int = 8, height: int = 8) -> dict[str, tuple[int, int]]:
    """Returns the names and shapes of a LoRA on a linear layer (height, width)."""
    return {
        f"{PREFIX}{module}.lora_A.weight": (rank, width),
        f"{PREFIX}{module}.lora_B.weight": (height, rank),
    }


Q_PROJ = "model.layers.0.self_attn.q_proj"
K_PROJ = "model.layers.0.self_attn.k_proj"


def write_adapter(folder: Path, shapes: Shapes | None = None, **config: Any) -> Path:
    """Writes an adapter; by default rank 4, alpha 8 on one query projection of width 8.

    What its tensors are of is what it selects, unless `target_modules` says otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = pair(Q_PROJ) if shapes is None else shapes
    write_tensors(folder / "adapter_model.safetensors", shapes)
    modules = [name.removesuffix(_LORA_A) for name in shapes if name.endswith(_LORA_A)]
    if "target_parameters" in config:
        modules = []
    targets = list(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    write_adapter_config(folder, **{"target_modules": targets or ["q_proj"], **config})
    return folder


def write_adapter_config(folder: Path, **config: Any) -> None:
    """Writes `adapter_config.json`; None removes a field."""
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj"],
        "base_model_name_or_path": "org/base",
        **config,
    }
    text = json.dumps(_stated(document), ensure_ascii=False)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


BASE_SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (16, 8),
    f"{Q_PROJ}.weight": (8, 8),
    f"{K_PROJ}.weight": (8, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.norm.weight": (8,),
}


def write_base(
    folder: Path,
    shards: tuple[Shapes, ...] = (BASE_SHAPES,),
    *,
    license_id: str | None = "apache-2.0",
    dtype: DTypeLike = np.float32,
    **config: Any,
) -> Path:
    """Writes a base of one file or, with more shards, of an index and files.

    In the configuration, None removes a field.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(_stated(document)), encoding="utf-8")
    if license_id is not None:
        card = f"---\nlicense: {license_id}\n---\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
    if len(shards) == 1:
        write_tensors(folder / "model.safetensors", shards[0], dtype=dtype)
        return folder
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / name, shapes, dtype=dtype)
        weight_map |= dict.fromkeys(shapes, name)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    """Writes the index of a sharded checkpoint."""
    document = {"metadata": {"total_size": 0}, "weight_map": dict(weight_map)}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(document), encoding="utf-8")


def _stated(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}
