"""Bases for tuners, with the tokenizer and the card of the other tests' bases."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from tests.models import write_tokenizer

_CARD = "---\nlicense: apache-2.0\n---\n# A random model for tests\n"


def make_qwen2(out: Path, *, dtype: str = "float32", layers: int = 2) -> Path:
    """Writes a random Qwen2: linear layers with and without biases, RMS norms, an untied head."""
    tokens = write_tokenizer(out)
    config = Qwen2Config(
        vocab_size=tokens,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.1,
        dtype=dtype,
    )
    return _write(Qwen2ForCausalLM, config, out)


def make_gpt2(out: Path, *, dtype: str = "float32") -> Path:
    """Writes a random GPT-2: its layers are Conv1D, which are stored the other way round."""
    tokens = write_tokenizer(out)
    config = GPT2Config(
        vocab_size=tokens,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.1,
        dtype=dtype,
    )
    return _write(GPT2LMHeadModel, config, out)


def _write(kind: type, config: Qwen2Config | GPT2Config, out: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and parameter.dim() == 1:
                torch.nn.init.normal_(parameter, std=0.1)
    model.to(getattr(torch, str(config.dtype).removeprefix("torch."))).save_pretrained(out)
    (out / "README.md").write_text(_CARD, encoding="utf-8")
    return out
