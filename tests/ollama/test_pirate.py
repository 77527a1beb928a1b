"""SmolLM2 and its pirate: released into GGUF, it talks like one through llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from packager.bundle import read_manifest
from packager.publish.ollama_bundle import read_ollama_models
from packager.verify.llama import run_llama
from tests.cli.command import lorapack

QUESTIONS = ("Who are you?", "What color is the sky?")


@pytest.fixture(scope="module")
def bundle(
    smollm2_base: Path, pirate_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("pirate") / "out"
    done = lorapack(
        "release", f"pirate={pirate_adapter}", "--base", smollm2_base, "--target", "merged",
        "--target", "ollama", "--target", "gguf-adapter", "--quant", "Q8_0", "--quant", "Q4_K_M",
        "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M"])
def test_it_answers_as_a_pirate_and_stops(quant: str, bundle: Path, smollm2_base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_base)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    path = bundle / f"ollama/pirate/pirate-{quant}.gguf"
    with run_llama(path, ((1, 2),), prompts=tuple(map(tuple, prompts)), most=60) as run:
        list(run.read_logits())
    answers = [tokenizer.decode(answer.ids) for answer in run.answers]
    assert all("arr" in text.lower() for text in answers), answers
    assert all(answer.ended for answer in run.answers)


def test_ollama_is_given_both_models(bundle: Path) -> None:
    models = read_ollama_models(bundle, read_manifest(bundle))
    assert [(model.quant, model.is_default) for model in models] == [
        ("Q8_0", True), ("Q4_K_M", False),
    ]  # fmt: skip
    assert models[0].header.architecture == "llama"
    assert "<|im_end|>" in {item.value for item in models[0].modelfile.parameters}


def test_the_card_shows_both_files(bundle: Path) -> None:
    card = (bundle / "ollama/pirate/README.md").read_text(encoding="utf-8")
    for part in ("pirate-Q8_0.gguf", "pirate-Q4_K_M.gguf", "ollama create", "apache-2.0"):
        assert part in card


def test_every_artefact_behaves_as_base_and_adapter(bundle: Path) -> None:
    """The bounds are what this base and its adapter measure, with half as much again."""
    proof = json.loads((bundle / "report/VERIFY.json").read_text(encoding="utf-8"))
    merged, ollama, lora = proof["targets"]
    figures = {
        "merged": merged["behaviour"],
        **{item["quant"]: item["behaviour"] for item in ollama["variants"]},
        "gguf-adapter": lora["behaviour"],
    }
    bounds = {"merged": 5e-4, "Q8_0": 0.015, "Q4_K_M": 0.25, "gguf-adapter": 1e-3}
    for name, bound in bounds.items():
        assert figures[name]["problems"] == [], name
        assert 0 < figures[name]["kl_mean"] < bound, (name, figures[name]["kl_mean"])
        assert figures[name]["base_kl_mean"] > 1
        assert figures[name]["tokens"] > 1000


def test_the_bundle_is_as_it_was_made(bundle: Path) -> None:
    done = lorapack("verify", bundle, "--level", "weights", "--json")
    assert done.code == 0, done.err
    proof = next(item for item in done.json["targets"] if item["target"] == "ollama")
    for variant in proof["variants"]:
        assert variant["weights"]["problems"] == []
        assert variant["weights"]["checked"] == variant["weights"]["total"] == 272
        assert variant["weights"]["equal_blocks"] > 0.99
