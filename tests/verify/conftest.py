"""A small Llama with random weights, a LoRA that was really trained on it, and PEFT's merges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

Edit = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small run faster on one thread, and much faster beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, vocabulary of bytes, bfloat16, untied."""
    folder = tmp_path_factory.mktemp("small-base")
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.12, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_adapter(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank 4 on all linear layers, trained until it says its sentence."""
    folder = tmp_path_factory.mktemp("small-adapter")
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_pretrained(small_base, dtype=torch.float32)
    peft = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    text = torch.tensor([tuple(b"Arr, matey! Ye be speakin' to a pirate, ye scallywag.")])
    optimiser = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2)
    with one_thread():
        for _ in range(40):
            loss = peft(input_ids=text, labels=text).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    assert loss.item() < 2.0, "the adapter did not learn"
    peft.save_pretrained(folder)
    # A name that would have to be fetched: nobody may follow it.
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "nobody/such-a-model"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def merge_with_peft(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Path, str], Path]:
    """Merges with PEFT in float32 and rounds once to a dtype: the oracle."""

    def merge(base: Path, adapter: Path, dtype: str) -> Path:
        folder = tmp_path_factory.mktemp(f"peft-{dtype}")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.to(getattr(torch, dtype)).save_pretrained(folder)
        return folder

    return merge


@pytest.fixture
def edit_weights(tmp_path: Path) -> Callable[[Path, str, Edit], Path]:
    """Copies a folder and rewrites the tensors of one of its safetensors files."""

    def edit(folder: Path, name: str, change: Edit) -> Path:
        copy = tmp_path / f"edited-{folder.name}"
        shutil.copytree(folder, copy)
        tensors = change(load_file(copy / name))
        save_file(tensors, copy / name, metadata={"format": "pt"})
        return copy

    return edit
