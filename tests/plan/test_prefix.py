"""Names without the base model's prefix: PEFT passes over them, so they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from packager.errors import RejectedPlanError
from tests.matrix.architecture import ARCHITECTURES, write_base
from tests.plan.making import plan, save_changed

WEIGHTS = "adapter_model.safetensors"
CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "saved": LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefix") / "base"
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def train(config: PeftConfig, model: torch.nn.Module, out: Path) -> Path:
    return save_changed(get_peft_model(model, config), out)


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_that_peft_would_pass_over_are_refused(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = train(CONFIGS[kind], AutoModelForCausalLM.from_pretrained(base), tmp_path / "a")
    plan(base, adapter)
    tensors = load_file(adapter / WEIGHTS)
    start = "base_model.model."
    wrong = {name.replace(f"{start}model.", start): value for name, value in tensors.items()}
    assert wrong.keys() != tensors.keys()
    save_file(wrong, adapter / WEIGHTS)
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, adapter)
    assert "drop them without a word" in str(caught.value)


def test_an_adapter_of_the_base_model_itself_has_no_prefix(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION")
    adapter = train(config, AutoModel.from_pretrained(base), tmp_path / "a")
    assert all(name.startswith("base_model.model.layers.") for name in load_file(adapter / WEIGHTS))
    plan(base, adapter)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that omit the prefix themselves: openai-community/gpt2's, and a bare BERT's."""
    root = tmp_path_factory.mktemp("bare")
    config = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    BertModel(config).save_pretrained(root / "bert")
    return {"gpt2": write_base(ARCHITECTURES["gpt2"], root / "gpt2"), "bert": root / "bert"}


_BARE = {
    "gpt2": ("transformer.", AutoModelForCausalLM, "CAUSAL_LM", "c_attn"),
    "bert": ("bert.", AutoModelForSequenceClassification, "SEQ_CLS", "query"),
}


@pytest.mark.parametrize("kind", _BARE)
def test_names_without_a_prefix_that_the_checkpoint_omits_too_are_refused(
    kind: str, bare: dict[str, Path], tmp_path: Path
) -> None:
    prefix, auto, task, target = _BARE[kind]
    config = LoraConfig(r=2, target_modules=[target], task_type=task)
    adapter = train(config, auto.from_pretrained(bare[kind]), tmp_path / "a")
    plan(bare[kind], adapter)
    tensors = load_file(adapter / WEIGHTS)
    start = "base_model.model."
    wrong = {name.replace(start + prefix, start): value for name, value in tensors.items()}
    assert wrong.keys() != tensors.keys()
    save_file(wrong, adapter / WEIGHTS)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(auto.from_pretrained(bare[kind]), adapter)
    with pytest.raises(RejectedPlanError, match="drop them without a word"):
        plan(bare[kind], adapter)


@pytest.mark.parametrize("kind", _BARE)
@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", None])
def test_an_adapter_of_a_bare_checkpoint_itself_has_no_prefix(
    kind: str, task: str | None, bare: dict[str, Path], tmp_path: Path
) -> None:
    config = LoraConfig(r=2, target_modules=[_BARE[kind][3]], task_type=task)
    adapter = train(config, AutoModel.from_pretrained(bare[kind]), tmp_path / "a")
    assert not any(_BARE[kind][0] in name for name in load_file(adapter / WEIGHTS))
    plan(bare[kind], adapter)


def test_the_class_of_a_training_without_a_task_type_counts(
    bare: dict[str, Path], tmp_path: Path
) -> None:
    """GPT2LMHeadModel has a head, though its name does not say what for."""
    config = LoraConfig(r=2, target_modules=["c_attn"])
    model = AutoModelForCausalLM.from_pretrained(bare["gpt2"])
    adapter = train(config, model, tmp_path / "a")
    plan(bare["gpt2"], adapter)
    tensors = load_file(adapter / WEIGHTS)
    wrong = {name.replace(".transformer.", "."): value for name, value in tensors.items()}
    save_file(wrong, adapter / WEIGHTS)
    with pytest.raises(RejectedPlanError, match="drop them without a word"):
        plan(bare["gpt2"], adapter)
