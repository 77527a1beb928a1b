"""Proofs as values, for what is made of them: page and text."""

from __future__ import annotations

import math
from dataclasses import replace

from packager.verify.judge import MERGED_BOUNDS, judge
from packager.verify.proof import (
    SCHEMA_VERSION,
    BehaviourCheck,
    ChatCheck,
    FilesCheck,
    Proof,
    TargetProof,
    TensorFigure,
    WeightsCheck,
)
from tests.card_facts import make_variant

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\u202e{{7*7}}"
SCRIPTS = "海賊 قرصان समुद्री डाकू 🏴‍☠️"


def make_behaviour(loss: float = 5e-5, effect: float = 3.77, tokens: int = 400) -> BehaviourCheck:
    """A check whose artefact lost that share of an effect that varies over the text."""
    base = tuple(effect * (1 + math.sin(i / 5)) for i in range(tokens))
    return judge(
        prompt_set="lorapack-prompts-1",
        prompts=16,
        kl=tuple(value * loss for value in base),
        base_kl=base,
        agreement=0.9973,
        surprise=-0.00743,
        bounds=MERGED_BOUNDS["BF16"],
        problems=(),
    )


def make_figures(layers: int, prefix: str = "model.layers") -> tuple[TensorFigure, ...]:
    kinds = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    inside = [
        TensorFigure(
            f"{prefix}.{layer}.{kind}.weight", "lora", layer,
            0.01 + layer * 0.001 + number * 0.002, 0.05 + 0.1 / (1 + layer), 0.5,
        )
        for layer in range(layers)
        for number, kind in enumerate(kinds)
    ]  # fmt: skip
    return (*inside, TensorFigure("lm_head.weight", "untied-head", None, 0.02, 0.04, 0.5))


def make_weights(layers: int = 30, **change: object) -> WeightsCheck:
    figures = make_figures(layers)
    count = len(figures)
    check = WeightsCheck(
        checked=count + 62, total=count + 62, by_rule={"lora": (count, count), "copy": (62, 62)},
        adapter_tensors_used=2 * count, adapter_tensors_total=2 * count, figures=figures,
        problems=(),
    )  # fmt: skip
    return replace(check, **change)


def make_target(**change: object) -> TargetProof:
    target = TargetProof(
        "merged", "pirate", FilesCheck(9, 271_000_000, ()), make_weights(), make_behaviour(), {}
    )
    return replace(target, **change)


def make_adapter_target() -> TargetProof:
    weights = WeightsCheck(420, 420, {"copy": (420, 420)}, 420, 420, (), ())
    reason = "kept separate: base and adapter, loaded together, are the truth itself"
    return TargetProof(
        "adapter", "pirate", FilesCheck(7, 9_800_000, ()), weights, None, {"behaviour": reason}
    )


def make_gguf_target(**change: object) -> TargetProof:
    target = TargetProof(
        "ollama", "pirate", FilesCheck(9, 250_300_000, ()), None, None, {},
        variants=(
            make_variant("Q4_K_M", 105_454_208, 0.153, 0.0388),
            make_variant("Q8_0", 144_811_136, 0.01, 0.00567),
        ),
        chat=ChatCheck(8, 8, ()),
    )  # fmt: skip
    return replace(target, **change)


def make_proof(*targets: TargetProof, **change: object) -> Proof:
    proof = Proof(
        schema_version=SCHEMA_VERSION,
        created="2026-11-23T23:50:00+00:00",
        base="HuggingFaceTB/SmolLM2-135M-Instruct@12fd25f77366fa6b3b4b768ec3050bf629380bac",
        base_digest="sha256:" + "ab" * 32,
        evidence="lock",
        adapters={"pirate": "sha256:" + "cd" * 32},
        versions={"python": "3.11.9", "torch": "2.13.0+cpu"},
        machine="Some processor, 2 cores, 24 GiB",
        targets=targets or (make_adapter_target(), make_target()),
    )
    return replace(proof, **change)
