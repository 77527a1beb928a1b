"""--llama-cpp: an architecture without a mapper, through llama.cpp's real converter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, OlmoConfig, OlmoForCausalLM

from packager.verify.llama import run_llama
from tests import models
from tests.cli.command import Done, lorapack
from tests.llamacpp_source import llamacpp_source

PASSAGE = tuple(range(100, 150))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random OLMo with a tokenizer whose splitting llama.cpp knows."""
    folder = tmp_path_factory.mktemp("neox") / "base"
    tokenizer = models.keep_smollm2()
    rows = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = OlmoConfig(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        OlmoForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return models.make_adapter(base, base.parent / "pirate")


@pytest.fixture(scope="module")
def released(base: Path, adapter: Path) -> Done:
    return lorapack(
        "release", adapter, "--base", base, "--license", "mit", "--out", base.parent / "out",
        "--target", "merged", "--target", "ollama", "--quant", "F16", "--quant", "Q8_0",
        "--dtype", "float32", "--llama-cpp", llamacpp_source(), "--no-behaviour", "--json",
    )  # fmt: skip


def test_without_it_an_error_names_both_ways_out(base: Path, adapter: Path) -> None:
    done = lorapack("plan", adapter, "--base", base, "--license", "mit", "--target", "ollama")
    assert done.code == 1
    assert "this architecture cannot be written as GGUF" in done.err
    assert "'OlmoForCausalLM'" in done.err
    assert "--target adapter" in done.err
    assert "--llama-cpp DIR" in done.err


def test_not_asked_for_it_is_left_out_with_a_note(base: Path, adapter: Path) -> None:
    plan = lorapack("plan", adapter, "--base", base, "--license", "mit", "--json").json
    assert [target["target"] for target in plan["targets"]] == ["adapter", "merged", "vllm"]
    (note,) = [note for note in plan["notes"] if "ollama" in note]
    assert note.startswith("ollama/pirate is left out: this architecture cannot be written as GGUF")


def test_the_converted_model_predicts_what_transformers_does(base: Path, released: Done) -> None:
    assert released.code == 0, released.err
    assert "a program of yours" in released.err
    folder = base.parent / "out/ollama/pirate"
    assert sorted(path.name for path in folder.iterdir()) == [
        "Modelfile", "Modelfile.F16", "Modelfile.Q8_0", "README.md", "create.F16.json",
        "create.Q8_0.json", "create.json", "pirate-F16.gguf", "pirate-Q8_0.gguf",
    ]  # fmt: skip
    assert "FROM ./pirate-F16.gguf" in (folder / "Modelfile").read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(base.parent / "out/merged/pirate")
    without = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([PASSAGE])
    with torch.inference_mode():
        wanted = model(ids).logits[0, :-1].log_softmax(1)
        effect = (without(ids).logits[0, :-1].log_softmax(1) - wanted).norm()
    for quant, most in (("F16", 0.01), ("Q8_0", 0.1)):
        with run_llama(folder / f"pirate-{quant}.gguf", (PASSAGE,)) as run:
            (logits,) = run.read_logits()
        assert (logits.log_softmax(1) - wanted).norm() < most * effect, quant


def test_its_bundle_is_verified_without_the_converter(base: Path, released: Done) -> None:
    assert released.code == 0, released.err
    done = lorapack("verify", base.parent / "out", "--level", "weights", "--json")
    assert done.code == 0, done.err
    (proof,) = [item for item in done.json["targets"] if item["target"] == "ollama"]
    assert proof["files"]["problems"] == []
    assert [item["quant"] for item in proof["variants"]] == ["F16", "Q8_0"]
    assert "another program" in proof["skipped"]["weights"]


def test_a_folder_without_a_converter_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    done = lorapack(
        "release", adapter, "--base", base, "--license", "mit", "--target", "ollama",
        "--llama-cpp", tmp_path, "--out", tmp_path / "out",
    )  # fmt: skip
    assert (done.code, done.out) == (1, "")
    assert "is no llama.cpp checkout" in done.err
    assert not any(path.name.endswith("lorapack") for path in tmp_path.iterdir())


def test_a_converter_that_fails_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    script = "import sys; print('first'); sys.exit('no such model here')\n"
    (checkout / "convert_hf_to_gguf.py").write_text(script, encoding="utf-8")
    done = lorapack(
        "release", adapter, "--base", base, "--license", "mit", "--target", "ollama",
        "--llama-cpp", checkout, "--out", tmp_path / "out",
    )  # fmt: skip
    assert (done.code, done.out) == (1, "")
    assert "no such model here" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["checkout"]
