"""Bases and adapters of a wanted size, made once and kept outside of the checkout."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 16


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model."""

    hidden: int
    inner: int
    layers: int
    keys: int
    vocabulary: int
    tied: bool = True
    shards: int = 4

    def linears(self) -> dict[str, tuple[int, int]]:
        """Names and shapes (out, in) of all linear layers but the head."""
        per_layer = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.keys, self.hidden),
            "self_attn.v_proj": (self.keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }
        return {
            f"model.layers.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in per_layer.items()
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors, in file order."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden)
        }
        for name, shape in self.linears().items():
            shapes[f"{name}.weight"] = shape
            if name.endswith("down_proj"):
                layer = name.rpartition(".mlp")[0]
                shapes[f"{layer}.input_layernorm.weight"] = (self.hidden,)
                shapes[f"{layer}.post_attention_layernorm.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes


# The shapes of Llama 3.2 1B and 3B and of Llama 3.1 8B; and a small model with one huge head.
SHAPES = {
    "1B": Shape(2048, 8192, 16, 512, 128256),
    "3B": Shape(3072, 8192, 28, 1024, 128256),
    "8B": Shape(4096, 14336, 32, 1024, 128256, tied=False),
    "2GB-tensor": Shape(4096, 4096, 1, 1024, 256_000, tied=False, shards=2),
}


def make_base(name: str, folder: Path) -> Path:
    """Makes the bfloat16 base of a shape; a finished one is taken as it is."""
    out = folder / f"base-{name}"
    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    noise = noise.mul_(0.02).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    groups = _groups(shape)
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: _fill(noise, size) for name, size in group.items()}
        save_file(tensors, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": _bytes(shape.tensors())}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (out / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (out / "config.json").write_text(json.dumps(_config(shape), indent=1), encoding="utf-8")
    return out


def make_adapter(name: str, folder: Path, base: Path) -> Path:
    """Makes a float32 LoRA of rank 16 on every linear layer (of an untied head, only on that)."""
    out = folder / f"adapter-{name}"
    if (out / "adapter_config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[name]
    linears = shape.linears()
    if name == "2GB-tensor":
        linears["lm_head"] = (shape.vocabulary, shape.hidden)
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for module, (rows, columns) in linears.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, columns, generator=random) * 0.02
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(rows, RANK, generator=random) * 0.02
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted({module.rpartition(".")[2] for module in linears}),
        "base_model_name_or_path": str(base),
    }
    (out / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def _groups(shape: Shape) -> list[dict[str, tuple[int, ...]]]:
    tensors = shape.tensors()
    wanted = _bytes(tensors) / shape.shards
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    done = 0
    for name, size in tensors.items():
        if done >= wanted * len(groups) and len(groups) < shape.shards:
            groups.append({})
        groups[-1][name] = size
        done += 2 * math.prod(size)
    return groups


def _bytes(tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(2 * math.prod(size) for size in tensors.values())


def _fill(noise: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    count = math.prod(size)
    return noise.repeat(-(-count // noise.numel()))[:count].clone().view(size)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // 128,
        "num_key_value_heads": shape.keys // 128,
        "head_dim": 128,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.tied,
        "dtype": "bfloat16",
    }
