"""Adapters merged onto quantised bases, against PEFT on the models that training saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from packager.base import read_base
from packager.gguf import pretokenizer
from packager.gguf.tokenizerdocument import check_encodings, open_tokenizer
from packager.gguf.tokenizerfile import list_tokenizer_files
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests import models
from tests.quantisation.stored import quantise_base, read_values
from tests.quantisation.test_float import write_fp8

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_llama(tmp_path_factory.mktemp("plain") / "base", tied=False)


@pytest.fixture(scope="module")
def adapter(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_adapter(plain, tmp_path_factory.mktemp("tuned") / "adapter")


def merge(base: Path, adapter: Path, out: Path, **options: Any) -> Path:
    """Releases a merged model with its proof of weights; returns its folder."""
    request = ReleaseRequest(
        ((None, adapter),), out, str(base), behaviour=False,
        options=ReleaseOptions(targets=("merged",), **options),
    )  # fmt: skip
    made = release(request, Silent())
    (proof,) = made.proof.targets
    assert proof.weights is not None
    assert not proof.weights.problems
    return out / "merged" / adapter.name


def check_against_peft(merged: Path, model: Any, adapter: Path, dtype: torch.dtype) -> None:
    """Holds every merged weight against base + ΔW, both as PEFT has them, in float64."""
    tuned = PeftModel.from_pretrained(model, adapter)
    found = load_file(merged / "model.safetensors")
    count = 0
    for name, layer in tuned.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        base = layer.get_base_layer()
        weight = base.weight if base.weight.dtype.is_floating_point else dequantise(base)
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        delta = lora_b.double() @ lora_a.double() * layer.scaling["default"]
        truth = weight.double() + delta
        stored = found[f"{name}.weight"]
        assert stored.dtype == dtype
        error = (stored.double() - truth).abs()
        assert bool((error <= UNIT[dtype] * truth.abs() + 1e-9).all()), name
        count += 1
    assert count == 14


def dequantise(layer: Any) -> torch.Tensor:
    from peft.utils.integrations import dequantize_module_weight

    if hasattr(layer.weight, "quant_state"):
        layer.weight.quant_state.dtype = torch.float32
    return dequantize_module_weight(layer).detach()


FORMS = [
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    {"load_in_8bit": True},
]


@pytest.mark.parametrize("settings", FORMS)
@pytest.mark.parametrize("dtype", [None, "F32"])
def test_a_base_stored_by_bitsandbytes(
    plain: Path, adapter: Path, tmp_path: Path, settings: dict[str, Any], dtype: str | None
) -> None:
    base = quantise_base(plain, tmp_path / "base", **settings)
    merged = merge(base, adapter, tmp_path / "out", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    wanted = torch.bfloat16 if dtype is None else torch.float32
    check_against_peft(merged, model, adapter, wanted)
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["dtype"] == str(wanted).removeprefix("torch.")
    loaded = AutoModelForCausalLM.from_pretrained(merged, local_files_only=True)
    assert not getattr(loaded, "is_quantized", False)
    assert set(loaded.state_dict()) == set(load_file(plain / "model.safetensors"))


def test_a_base_in_fp8(tmp_path: Path) -> None:
    base = write_fp8(tmp_path / "base")
    plain = models.make_llama(tmp_path / "plain", tied=False)
    adapter = models.make_adapter(
        plain, tmp_path / "adapter", target_modules=["q_proj", "down_proj", "lm_head"]
    )
    merged = merge(base, adapter, tmp_path / "out")
    found, values = read_values(merged), read_values(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    truth = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    assert found.keys() == truth.keys()
    for name, wanted in truth.items():
        assert found[name].dtype == torch.bfloat16
        # transformers leaves the tensors that are not in fp8 in bfloat16.
        unit = 2.0**-8 if wanted.dtype == torch.float32 else 2.0**-7
        assert torch.allclose(found[name].float(), wanted.float(), rtol=unit, atol=1e-6), name
    kept = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(found[kept], values[kept].bfloat16())
    assert read_base(merged).quantised_count == 0


def test_a_gguf_of_a_quantised_base(
    plain: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof recomputes every block in float64, and llama.cpp answers as training does."""
    files = list_tokenizer_files(plain)
    ids = next(check_encodings(open_tokenizer(files), files))
    known = {**pretokenizer.NAMES, pretokenizer.hash_ids(ids): "llama-bpe"}
    monkeypatch.setattr(pretokenizer, "NAMES", known)
    base = quantise_base(plain, tmp_path / "base", **FORMS[0])
    request = ReleaseRequest(
        ((None, adapter),), tmp_path / "out", str(base),
        options=ReleaseOptions(targets=("ollama",), quants=("F32",)),
    )  # fmt: skip
    made = release(request, Silent())
    (proof,) = made.proof.targets
    (variant,) = proof.variants
    assert variant.weights is not None
    assert variant.weights.checked == variant.weights.total
    assert not variant.problems
    assert variant.behaviour is not None
    assert variant.behaviour.kl_mean < 1e-6 < variant.behaviour.base_kl_mean
    assert made.plan.notes[-1].startswith("14 tensors of the base are stored quantised")


@pytest.mark.parametrize("form", ["int8", "fp8", "mxfp4"])
def test_behaviour_of_what_is_merged_onto_a_quantised_base(
    form: str, plain: Path, adapter: Path, gpt_oss: Path, tmp_path: Path
) -> None:
    """The truth is the quantised base as transformers runs it, with PEFT's adapter on it."""
    if form == "mxfp4":
        base = gpt_oss
        (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
        adapter = models.make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    elif form == "fp8":
        base = write_fp8(tmp_path / "base")
    else:
        base = quantise_base(plain, tmp_path / "base", load_in_8bit=True)
    request = ReleaseRequest(
        ((None, adapter),), tmp_path / "out", str(base),
        options=ReleaseOptions(targets=("merged",), dtype="F32"),
    )  # fmt: skip
    (proof,) = release(request, Silent()).proof.targets
    assert proof.passed
    assert proof.behaviour is not None
    assert proof.behaviour.kl_mean < 1e-6 < proof.behaviour.base_kl_mean
