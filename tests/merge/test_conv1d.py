"""GPT-2 stores its weights as (in, out): merged the same way round as PEFT does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from packager.errors import AdapterError, RejectedPlanError
from packager.mergefolder import merge_to_folder
from packager.progress import Silent
from tests.folders import Q_PROJ, pair, write_adapter, write_base
from tests.merge.conftest import load, read_tensors

WIDTH = 32
BLOCK = "transformer.h.0."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2") / "base"
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=WIDTH, n_layer=2, n_head=4, tie_word_embeddings=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """On every Conv1D, square and not, and on the head, which is a Linear."""
    modules = ["c_attn", "c_proj", "c_fc", "lm_head"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=modules, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tuned = get_peft_model(load(base), config)
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data.normal_(std=0.2)
    tuned.save_pretrained(base.parent / "adapter", save_embedding_layers=False)
    return base.parent / "adapter"


def merge(base: Path, adapter: Path, out: Path) -> Path:
    merge_to_folder(str(base), adapter, out, 10**9, Silent())
    return out


def test_every_tensor_equals_peft_s(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged = read_tensors(merge(base, adapter, tmp_path / "out"))
    oracle = PeftModel.from_pretrained(load(base), adapter).merge_and_unload().state_dict()
    before = read_tensors(base)
    changed = [name for name in merged if not torch.equal(merged[name], before[name])]
    assert len(changed) == 2 * 4 + 1
    for name, values in merged.items():
        assert torch.allclose(values, oracle[name], rtol=0, atol=1e-6), name


def test_the_merged_model_answers_as_base_and_adapter(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = load(merge(base, adapter, tmp_path / "out"))
    tokens = torch.arange(60).view(2, 30)
    with torch.inference_mode():
        truth = PeftModel.from_pretrained(load(base), adapter)(input_ids=tokens).logits
        found = merged(input_ids=tokens).logits
        plain = load(base)(input_ids=tokens).logits
    assert (plain - truth).norm() > 0.1 * truth.norm()
    assert (found - truth).norm() < 1e-5 * truth.norm()


def test_names_without_the_model_s_prefix_are_found(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """As the checkpoints of GPT-2 on the Hub have it."""
    short = tmp_path / "short"
    short.mkdir()
    (short / "config.json").write_bytes((base / "config.json").read_bytes())
    tensors = {
        name.removeprefix("transformer."): value for name, value in read_tensors(base).items()
    }
    save_file(tensors, short / "model.safetensors", metadata={"format": "pt"})
    merged = read_tensors(merge(short, adapter, tmp_path / "out"))
    whole = read_tensors(merge(base, adapter, tmp_path / "whole"))
    assert set(merged) == {name.removeprefix("transformer.") for name in whole}
    for name, value in whole.items():
        assert torch.equal(value, merged[name.removeprefix("transformer.")]), name


def test_two_names_of_one_weight_are_refused(tmp_path: Path) -> None:
    base = write_base(
        tmp_path / "base", ({"wte.weight": (16, 8), "h.0.attn.c_attn.weight": (8, 24)},),
        architectures=["GPT2LMHeadModel"], model_type="gpt2",
    )  # fmt: skip
    shapes = pair("transformer.h.0.attn.c_attn", height=24) | pair("h.0.attn.c_attn", height=24)
    adapter = write_adapter(tmp_path / "a", shapes, target_modules=["c_attn"])
    with pytest.raises(RejectedPlanError, match="1 of 2 adapted modules are not in the base"):
        merge(base, adapter, tmp_path / "out")


def test_a_square_weight_of_an_unknown_model_is_not_guessed(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", model_type="their-own")
    adapter = write_adapter(tmp_path / "a", pair(Q_PROJ), fan_in_fan_out=True)
    with pytest.raises(RejectedPlanError, match="cannot be told which way round") as caught:
        merge(base, adapter, tmp_path / "out")
    assert isinstance(caught.value.problems[0], AdapterError)
    assert "their-own" in str(caught.value)
