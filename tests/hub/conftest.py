"""A loopback Hub, client processes, and a small base on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.loopback_hub.fixture import client, client_pool, hub_server, loopback_hub

__all__ = ["client", "client_pool", "hub_server", "loopback_hub"]


def write_base(folder: Path, *, seed: int = 0, shards: int = 2) -> Path:
    """Writes what a base repository holds: two shards, texts in several scripts, and by-catch."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    weight_map = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        tensor = generator.standard_normal((64, 512)).astype(np.float32)
        save_file({f"layer.{number}": tensor}, folder / name)
        weight_map[f"layer.{number}"] = name
    index = {"metadata": {"total_size": shards * 64 * 512 * 4}, "weight_map": weight_map}
    texts = {
        "config.json": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
        "model.safetensors.index.json": json.dumps(index),
        "tokenizer.json": json.dumps({"version": "1.0", "词": "🙂"}, ensure_ascii=False),
        "chat_template.jinja": "{{ '你好 🙂' }}",
        "LICENSE": "Apache License 2.0",
        "README.md": "---\nlicense: apache-2.0\nlanguage: zh\n---\n# Base\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (folder / "consolidated.safetensors").write_bytes(b"the same again")
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "onnx/model.onnx").write_bytes(b"onnx")
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")
