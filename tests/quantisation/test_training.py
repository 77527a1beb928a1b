"""Adapters trained on a base that bitsandbytes held in 4 or 8 bits: what is known, and merged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments

from packager.base import read_base
from packager.base.ref import read_local_base
from packager.errors import BaseError, BaseMismatchError, InputError
from packager.lock import read_lock
from packager.mergefolder import merge_to_folder
from packager.plan import ReleaseOptions
from packager.plan.option import MergeBase
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.training import (
    LOADED_IN,
    LoadedIn,
    TrainingQuantisation,
    dequantised_tensors,
    parse_card,
    parse_settings,
)
from packager.quantisation.values import open_values
from packager.release import Release, release
from packager.stamp import stamp_lock
from packager.train.callback import BaseLockCallback
from packager.trainingfact import read_training
from packager.verify.bundle import verify_bundle
from packager.verify.text import render_proof_text
from tests import models
from tests.quantisation.stored import quantise_base

SETTINGS: dict[LoadedIn, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4-double": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_llama(tmp_path_factory.mktemp("plain") / "base", tied=False)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained for a few steps on the base in 4 bits, in transformers' own Trainer."""
    root = tmp_path_factory.mktemp("trained")
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**SETTINGS["nf4-double"])
    )
    config = LoraConfig(
        r=4, lora_alpha=64, target_modules=["q_proj", "down_proj", "lm_head"],
        task_type="CAUSAL_LM", base_model_name_or_path=str(base),
    )  # fmt: skip
    tuned = get_peft_model(model, config)
    row = {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [5, 6, 7, 8, 9, 10]}
    arguments = TrainingArguments(
        str(root / "out"), max_steps=4, save_steps=4, per_device_train_batch_size=1,
        learning_rate=2e-2, report_to=[], use_cpu=True, disable_tqdm=True, save_only_model=True,
    )  # fmt: skip
    callback = BaseLockCallback(read_local_base(base))
    Trainer(tuned, arguments, train_dataset=[row] * 4, callbacks=[callback]).train()
    place = root / "adapter"
    shutil.copytree(root / "out" / "checkpoint-4", place)
    return place


def test_the_callback_writes_down_how_the_base_was_held(trained: Path) -> None:
    lock = read_lock(trained)
    assert lock is not None
    found = parse_settings(lock.training_quantization or {}, where="lock")
    assert found is not None
    assert found.loaded_in == "nf4-double"
    assert found.dtype == "BF16"
    assert found.modules is not None
    assert len(found.modules) == 14
    assert "model.layers.0.self_attn.q_proj" in found.modules
    assert "lm_head" not in found.modules
    assert parse_settings(found.to_settings(), where="again") == found


def test_what_the_card_of_an_adapter_says(trained: Path, tmp_path: Path) -> None:
    """Older versions of PEFT wrote bitsandbytes' settings there, and nothing else has them."""
    copy = shutil.copytree(trained, tmp_path / "adapter")
    (copy / "base.lock.json").unlink()
    settings = BitsAndBytesConfig(**SETTINGS["nf4-double"]).to_dict()
    lines = [f"- {name}: {value}" for name, value in settings.items()]
    heading = "The following `bitsandbytes` quantization config was used during training:"
    text = "\n".join(["## Training procedure", "", heading, *lines, "", "- PEFT 0.5.0"])
    (copy / "README.md").write_text(text, encoding="utf-8")
    found = read_training(copy, None)
    assert found == TrainingQuantisation("nf4-double")
    assert found.evidence == "card"
    skipped = text.replace("llm_int8_skip_modules: None", "llm_int8_skip_modules: ['lm_head', 'q']")
    named = parse_card(skipped, where="card")
    assert named is not None
    assert named.skipped == ("lm_head", "q")
    (copy / "README.md").unlink()
    assert read_training(copy, None) is None
    assert read_training(copy, "int8") == TrainingQuantisation("int8")


def test_a_user_does_not_overrule_the_lock(trained: Path) -> None:
    with pytest.raises(BaseMismatchError, match="says otherwise"):
        read_training(trained, "fp4")
    found = read_training(trained, "nf4-double")
    assert found is not None
    assert found.evidence == "lock"


@pytest.mark.parametrize("loaded_in", LOADED_IN)
def test_weights_as_training_saw_them(base: Path, tmp_path: Path, loaded_in: LoadedIn) -> None:
    """Against the values of what bitsandbytes makes of the base and saves."""
    saved = read_base(quantise_base(base, tmp_path / "saved", **SETTINGS[loaded_in])).tensors
    index = read_base(base)
    seen = dequantised_tensors(index.tensors, index.config, TrainingQuantisation(loaded_in))
    quantised = {name for name, ref in seen.items() if isinstance(ref, QuantisedRef)}
    assert quantised == {name for name, ref in saved.items() if isinstance(ref, QuantisedRef)}
    for name in quantised:
        ours, theirs = (open_values(refs[name]) for refs in (seen, saved))  # type: ignore[arg-type]
        rows = seen[name].shape[0]
        found, wanted = ours.read(0, rows), theirs.read(0, rows)
        if loaded_in.endswith("-double"):
            # Near-ties between two of 256 scales: see test_scales.
            same = (found == wanted).float().mean()
            assert float(same) > 0.9, name
            assert torch.allclose(found, wanted, rtol=0.02, atol=1e-6)
        else:
            assert torch.equal(found, wanted), name
        assert torch.equal(ours.read(3, 9), found[3:12])


def test_weights_that_are_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's: transformers turns them before bitsandbytes quantises them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    index = read_base(tmp_path / "base")
    for loaded_in in ("nf4", "int8"):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(**SETTINGS[loaded_in])
        )
        training = TrainingQuantisation(loaded_in)
        seen = dequantised_tensors(index.tensors, index.config, training)
        model.save_pretrained(tmp_path / loaded_in)
        stored = load_file(tmp_path / loaded_in / "model.safetensors")
        name = next(name for name in seen if name.endswith("mlp.c_fc.weight"))
        ref = seen[name]
        assert isinstance(ref, QuantisedRef)
        found = open_values(ref).read(0, 32)
        assert torch.equal(open_values(ref).read(5, 7), found[5:12])
        key = next(key for key in stored if key.endswith("mlp.c_fc.weight"))
        if loaded_in == "int8":
            scales = stored[key.replace("weight", "SCB")].view(-1, 1)
            wanted = stored[key] * scales * 7.874015718698502e-3
        else:
            packed = stored[key].view(-1)
            halves = torch.stack((packed >> 4, packed & 15), dim=1).view(-1, 64).long()
            scales = stored[f"{key}.absmax"].view(-1, 1)
            wanted = (stored[f"{key}.quant_map"][halves] * scales).view(128, 32)
        assert torch.equal(found, wanted.T), loaded_in


def test_skipped_modules_are_left_as_they_are(base: Path) -> None:
    index = read_base(base)
    training = TrainingQuantisation("nf4", skipped=("mlp.up_proj", "model.layers.1"))
    seen = dequantised_tensors(index.tensors, index.config, training)
    quantised = {name for name, ref in seen.items() if isinstance(ref, QuantisedRef)}
    assert len(quantised) == 7
    assert "lm_head.weight" in quantised  # named modules take the place of transformers' own choice
    assert "model.layers.0.mlp.up_proj.weight" not in quantised
    assert not [name for name in quantised if ".1." in name]


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def make(trained: Path, base: Path, out: Path, **options: Any) -> Release:
    request = ReleaseRequest(
        ((None, trained),), out, str(base),
        options=ReleaseOptions(targets=("merged",), dtype="F32", **options),
    )  # fmt: skip
    return release(request, Silent())


@pytest.mark.parametrize("wanted", [None, "16bit", "dequantized"])
def test_both_merges_are_measured_against_training(
    trained: Path, base: Path, tmp_path: Path, wanted: MergeBase | None
) -> None:
    made = make(trained, base, tmp_path / "out", merge_base=wanted)
    (proof,) = made.proof.targets
    assert proof.passed
    check = proof.merge_base
    assert check is not None
    assert check.chosen == (wanted or "dequantized")
    assert check.closer == "dequantized"
    assert check.kl_16bit > 100 * check.kl_dequantized
    assert check.loaded_in == "nf4-double"
    assert proof.behaviour is not None
    assert proof.behaviour.kl_mean < 1e-6
    merged = load_file(tmp_path / "out" / "merged" / trained.name / "model.safetensors")
    stored = load_file(base / "model.safetensors")
    untouched = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(merged[untouched], stored[untouched].float()) == (wanted == "16bit")
    assert json.loads((tmp_path / "out" / "lorapack.json").read_text())["options"][
        "merge_base"
    ] == check.chosen  # fmt: skip
    card = (tmp_path / "out" / "merged" / trained.name / "README.md").read_text(encoding="utf-8")
    assert "| the base as training saw it |" in card
    assert "trained on the base loaded in nf4-double by bitsandbytes" in card
    shown = render_proof_text(made.proof)
    form = "in 16 bits" if wanted == "16bit" else "as training saw it"
    page = (tmp_path / "out" / "report" / "report.html").read_text(encoding="utf-8")
    for text in (shown, page):
        assert f"merged onto the base {form}" in text
    again = verify_bundle(tmp_path / "out", level="behaviour", base=None, progress=Silent())
    assert again.passed
    assert again.targets[0].merge_base is not None
    assert replace(again.targets[0].merge_base) == check


def test_a_merge_onto_what_training_saw_answers_as_training_did(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    make(trained, base, tmp_path / "out", merge_base="dequantized")
    settings = BitsAndBytesConfig(**SETTINGS["nf4-double"])
    held = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=settings, dtype=torch.float32
    )
    for module in held.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    tuned = PeftModel.from_pretrained(held, trained).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged" / trained.name)
    ids = torch.arange(40).view(1, -1)
    with torch.inference_mode():
        wanted, found = tuned(ids).logits, merged(ids).logits
        with tuned.disable_adapter():
            plain = tuned(ids).logits
    assert float((found - wanted).abs().max()) < 0.02 * float((plain - wanted).abs().max())


def test_without_a_proof_of_behaviour_there_is_a_default(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    listener = Listener()
    request = ReleaseRequest(
        ((None, trained),), tmp_path / "out", str(base), behaviour=False,
        options=ReleaseOptions(targets=("merged",)),
    )  # fmt: skip
    made = release(request, listener)
    assert made.manifest.options["merge_base"] == "dequantized"
    assert [line for line in listener.said if "not measured: --no-behaviour" in line]
    known = [line for line in listener.said if "the adapter's lock" in line]
    assert [line for line in known if "nf4-double" in line]


@pytest.mark.parametrize("wanted", [None, "16bit", "dequantized"])
def test_the_one_step_form_says_what_it_merges_onto_and_why(
    trained: Path, base: Path, tmp_path: Path, wanted: MergeBase | None
) -> None:
    listener = Listener()
    merge_to_folder(str(base), trained, tmp_path / "out", 1 << 30, listener, merge_base=wanted)
    assert any("not measured" in line for line in listener.said) == (wanted is None)
    onto = "onto the base as it is stored" if wanted == "16bit" else "as training saw it"
    assert any(onto in line for line in listener.said)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    stored = load_file(base / "model.safetensors")
    untouched = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(merged[untouched], stored[untouched]) == (wanted == "16bit")


def test_adapters_of_differently_loaded_bases_are_named(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    plain = models.make_adapter(base, tmp_path / "plain")
    listener = Listener()
    request = ReleaseRequest(
        (("quantised", trained), ("plain", plain)), tmp_path / "out", str(base),
        options=ReleaseOptions(targets=("merged",)),
    )  # fmt: skip
    made = release(request, listener)
    (line,) = [line for line in listener.said if "differently loaded bases" in line]
    assert "quantised in nf4-double, plain in 16 bits" in line
    first, second = made.proof.targets
    assert first.merge_base is not None
    assert first.merge_base.chosen == "16bit"
    assert first.merge_base.closer == "dequantized"
    assert second.merge_base is None


def test_the_proof_says_what_of_eight_bits_is_no_part_of_it(base: Path, tmp_path: Path) -> None:
    adapter = models.make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    listener = Listener()
    request = ReleaseRequest(
        ((None, adapter),), tmp_path / "out", str(base),
        options=ReleaseOptions(
            targets=("merged",), loaded_in="int8", merge_base="dequantized", dtype="F32"
        ),
    )  # fmt: skip
    made = release(request, listener)
    assert [line for line in listener.said if "LLM.int8() rounded what goes into" in line]
    assert "without what LLM.int8() rounds off the activations" in render_proof_text(made.proof)
    check = made.proof.targets[0].merge_base
    assert check is not None
    assert check.kl_dequantized < check.kl_16bit
    weights = load_file(tmp_path / "out" / "merged" / "adapter" / "model.safetensors")
    seen = read_base(quantise_base(base, tmp_path / "int8", load_in_8bit=True)).tensors
    untouched = "model.layers.0.mlp.gate_proj.weight"
    ref = seen[untouched]
    assert isinstance(ref, QuantisedRef)
    assert torch.equal(weights[untouched], open_values(ref).read(0, ref.shape[0]))


def test_what_is_not_known_is_asked_for(base: Path, tmp_path: Path) -> None:
    adapter = models.make_adapter(base, tmp_path / "adapter")
    with pytest.raises(InputError, match="nothing says how the base was quantised") as caught:
        make(adapter, base, tmp_path / "out", merge_base="dequantized")
    assert "--loaded-in nf4" in caught.value.hint
    stored = quantise_base(base, tmp_path / "stored", **SETTINGS["nf4"])
    with pytest.raises(BaseError, match="16-bit form is not here"):
        make(adapter, stored, tmp_path / "out", merge_base="16bit")


def test_a_lock_is_stamped_by_hand(base: Path, tmp_path: Path) -> None:
    adapter = models.make_adapter(base, tmp_path / "adapter")
    lock = stamp_lock(adapter, str(base), Silent(), loaded_in="fp4-double")
    assert lock.training_quantization is not None
    found = read_training(adapter, None)
    assert found == TrainingQuantisation("fp4-double")
    assert stamp_lock(adapter, str(base), Silent()).training_quantization == (
        lock.training_quantization
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "int3"},
        {"load_in_4bit": True, "dtype": "int8"},
        {"load_in_8bit": True, "llm_int8_skip_modules": ["(a+)+$"]},
        {"load_in_8bit": True, "quantized_modules": "all"},
    ],
)
def test_what_a_stranger_may_write_there(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="it cannot be read how the base was quantised"):
        parse_settings(settings, where="lock")
