"""A base in MXFP4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from tests import models
from tests.quantisation.stored import edit_config, edit_tensors


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpt-oss whose experts lie in MXFP4, with random bytes."""
    out = tmp_path_factory.mktemp("gpt-oss") / "base"
    tokens = models.write_tokenizer(out)
    config = GptOssConfig(
        vocab_size=tokens, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_local_experts=4, num_experts_per_tok=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, max_position_embeddings=256, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(out)
    changes: dict[str, Tensor | None] = {}
    for name, weight in load_file(out / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, rows, columns = weight.shape
            size = (experts, columns, rows // 32)
            changes[name] = None
            changes[f"{name}_blocks"] = torch.randint(256, (*size, 16), dtype=torch.uint8)
            changes[f"{name}_scales"] = torch.randint(118, 126, size, dtype=torch.uint8)
    edit_tensors(out, changes)
    edit_config(out, quantization_config={"quant_method": "mxfp4"})
    return out
