"""Merged models in bitsandbytes' 4 bits, against what transformers and bitsandbytes save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from packager.base import read_base
from packager.errors import RejectedPlanError
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import Release, release
from packager.verify.bundle import verify_bundle
from packager.verify.fourbit import find_wrong_values
from tests import models
from tests.quantisation.stored import quantise_base


def make(base: Path, adapter: Path, out: Path, **options: Any) -> Release:
    request = ReleaseRequest(
        ((None, adapter),), out, str(base), behaviour=bool(options.pop("behaviour", False)),
        options=ReleaseOptions(targets=("merged",), **options),
    )  # fmt: skip
    return release(request, Silent())


@pytest.fixture(scope="module", params=[64, 48], ids=["whole", "ragged"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that fill blocks of 64 values, and rows that do not."""
    return models.make_llama(tmp_path_factory.mktemp("base") / "base", hidden=request.param)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_adapter(
        base, tmp_path_factory.mktemp("adapter") / "adapter", r=4, lora_alpha=32,
        target_modules=["q_proj", "up_proj", "down_proj", "lm_head"],
    )  # fmt: skip


def test_the_same_tensors_as_transformers_saves(base: Path, adapter: Path, tmp_path: Path) -> None:
    make(base, adapter, tmp_path / "plain")
    merged = tmp_path / "plain" / "merged" / "adapter"
    wanted = quantise_base(
        merged, tmp_path / "saved", load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="bfloat16",
    )  # fmt: skip
    made = make(base, adapter, tmp_path / "out", hub_quant="nf4", max_shard_bytes=1_000_000)
    found = tmp_path / "out" / "merged" / "adapter"
    ours, theirs = load_file(found / "model.safetensors"), load_file(wanted / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    ours_config, theirs_config = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        for folder in (found, wanted)
    )
    assert ours_config.pop("llm_int8_skip_modules") == ["lm_head", "model.embed_tokens"]
    assert {name: theirs_config[name] for name in ours_config} == ours_config
    (proof,) = made.proof.targets
    assert proof.weights is not None
    assert not proof.weights.problems
    assert proof.weights.by_rule["lora+nf4"] == (6, 6)
    assert proof.weights.by_rule["copy+nf4"] == (8, 8)


def test_it_loads_and_answers_like_the_merged_model(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    made = make(base, adapter, tmp_path / "out", hub_quant="nf4", behaviour=True)
    folder = tmp_path / "out" / "merged" / "adapter"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    held = [name for name, module in model.named_modules() if "4bit" in type(module).__name__]
    assert len(held) == 14
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    (proof,) = made.proof.targets
    if read_base(base).config["hidden_size"] == 48:
        assert "misreads rows of 48 values" in proof.skipped["behaviour"]
        return
    assert proof.behaviour is not None
    assert 0 < proof.behaviour.kl_mean < proof.behaviour.base_kl_mean / 4
    assert "bitsandbytes" in made.proof.versions
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "4 bits (NF4)" in card
    again = verify_bundle(tmp_path / "out", level="behaviour", base=None, progress=Silent())
    assert again.passed


def test_wrong_values_are_found(base: Path, adapter: Path, tmp_path: Path) -> None:
    made = make(base, adapter, tmp_path / "out", hub_quant="nf4")
    folder = tmp_path / "out" / "merged" / "adapter"
    name = "model.layers.1.mlp.gate_proj.weight"
    ref = read_base(base).tensors[name]
    planned = next(item for item in made.plan.targets[0].tensors if item.name == name)
    assert planned.four_bit is not None
    path = folder / "model.safetensors"
    stored = load_file(path)
    weight = planned_weight(planned)
    for part, change in ((name, 0x10), (f"{name}.absmax", 0.01)):
        assert not find_wrong_values(weight, read_base(folder).tensors[name], ref, ())
        kept = stored[part].clone()
        place = (7,) if part != name else (7, 0)
        if stored[part].dtype == torch.uint8:
            stored[part][place] ^= change
        else:
            stored[part][place] *= 1 + change
        save_file(stored, path, metadata={"format": "pt"})
        line = find_wrong_values(weight, read_base(folder).tensors[name], ref, ())
        assert name in line
        stored[part] = kept
        save_file(stored, path, metadata={"format": "pt"})


def planned_weight(planned: Any) -> Any:
    from packager.plan.fourbit import merge_parts

    (weight,) = merge_parts([planned])
    return weight


def test_layers_that_lie_the_other_way_round_are_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    adapter = models.make_adapter(
        tmp_path / "base", tmp_path / "adapter", target_modules=["c_attn"]
    )
    with pytest.raises(RejectedPlanError) as caught:
        make(tmp_path / "base", adapter, tmp_path / "out", hub_quant="nf4")
    assert [item for item in caught.value.problems if "the other way round" in item.what]
