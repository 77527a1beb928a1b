"""The arithmetic of the probe, against torch."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lorapack_gate.expected import (
    Expected,
    ExpectedError,
    ExpectedModel,
    Question,
    parse_expected,
)
from lorapack_gate.judge import Verdict, divergence, judge, mean_divergence
from lorapack_gate.probe import probe

from tests.gate.setting import BASE, PIRATE, expected_document, log_probabilities, question

LOGITS = st.lists(st.floats(-8, 8), min_size=12, max_size=12)
SHOWN = 5


def asked(logits: list[float], count: int = SHOWN) -> Question:
    told = sorted(enumerate(log_probabilities(logits)), key=lambda pair: -pair[1])
    return Question((1,), tuple(told[:count]))


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_divergence_is_torchs_over_the_told_tokens_and_the_rest(
    truth: list[float], served: list[float]
) -> None:
    seen = asked(truth)
    p, q = (torch.tensor(logits, dtype=torch.float64).softmax(0) for logits in (truth, served))
    places = torch.tensor([token for token, _ in seen.top])
    bins = [torch.cat([x[places], (1 - x[places].sum()).clamp_min(1e-12)[None]]) for x in (p, q)]
    wanted = torch.nn.functional.kl_div(bins[1].log(), bins[0], reduction="sum").item()
    whole = torch.nn.functional.kl_div(q.log(), p, reduction="sum").item()
    found = divergence(seen, dict(enumerate(log_probabilities(served))))
    assert found == pytest.approx(wanted, abs=1e-4)
    # Nothing that agrees over the whole vocabulary can fail here.
    assert found <= whole + 1e-4


@settings(deadline=None)
@given(LOGITS)
def test_same_distribution_is_no_divergence(logits: list[float]) -> None:
    served = dict(enumerate(log_probabilities(logits)))
    assert divergence(asked(logits), served) == pytest.approx(0, abs=1e-9)


def test_token_that_is_not_told_counts_as_the_least_that_is() -> None:
    seen = Question((1,), ((0, math.log(0.5)), (1, math.log(0.3))))
    told = divergence(seen, {0: math.log(0.6), 2: math.log(0.2)})
    assert told == divergence(seen, {0: math.log(0.6), 1: math.log(0.2), 2: math.log(0.2)})


@pytest.mark.parametrize("answer", [{}, {0: math.nan}, {0: -math.inf, 1: -1.0}])
def test_no_distribution_is_infinitely_far(answer: dict[int, float]) -> None:
    assert divergence(asked(BASE), answer) == math.inf


def served_as(logits: list[float]) -> list[dict[int, float]]:
    return [dict(enumerate(log_probabilities(logits)))]


PROOF = ExpectedModel("pirate", "adapter", 0.05, (asked(PIRATE),))


def test_adapter_that_answers_as_proven_passes() -> None:
    verdict = judge(PROOF, served_as(PIRATE), served_as(BASE))
    assert verdict.reason == ""
    assert verdict.divergence < 1e-9
    assert verdict.base_divergence is not None
    assert verdict.base_divergence > 1


def test_adapter_that_answers_as_the_base_fails_by_name() -> None:
    verdict = judge(PROOF, served_as(BASE), served_as(BASE))
    assert "adapter 'pirate' answers as the base does" in verdict.reason
    # However wide the bound is.
    wide = ExpectedModel("pirate", "adapter", 100.0, PROOF.questions)
    assert "answers as the base does" in judge(wide, served_as(BASE), served_as(BASE)).reason


def whole(bound: float = 0.05) -> ExpectedModel:
    asked_of_it = asked(PIRATE)
    base = dict(enumerate(log_probabilities(BASE)))
    recorded = tuple(base[token] for token, _ in asked_of_it.top)
    return ExpectedModel("whole", "merged", bound, (replace(asked_of_it, base=recorded),))


def probed(model: ExpectedModel, served: list[float]) -> Verdict:
    """Asks a server of that one model, without a base beside it."""

    async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        assert json.loads(body)["model"] == "whole"
        told = {f"token_id:{token}": value for token, value in served_as(served)[0].items()}
        return 200, json.dumps({"choices": [{"logprobs": {"top_logprobs": [told]}}]}).encode()

    (verdict,) = asyncio.run(probe(Expected((model,)), "", ask))
    return verdict


def test_whole_model_is_held_against_what_the_proof_recorded_of_the_base() -> None:
    right = probed(whole(), PIRATE)
    assert right.reason == ""
    assert right.base_divergence == pytest.approx(
        mean_divergence(whole().questions, served_as(BASE)), rel=0.05
    )
    for bound in (0.05, 100.0):
        wrong = probed(whole(bound), BASE)
        assert "merged model 'whole' answers as the base does" in wrong.reason
    weak = [p * 0.7 + b * 0.3 for p, b in zip(PIRATE, BASE, strict=True)]
    assert "merged model 'whole' does not answer as in the proof" in probed(whole(), weak).reason


def test_adapter_that_answers_something_else_fails_with_its_figures() -> None:
    weak = [p * 0.7 + b * 0.3 for p, b in zip(PIRATE, BASE, strict=True)]
    verdict = judge(PROOF, served_as(weak), served_as(BASE))
    assert "does not answer as in the proof" in verdict.reason
    assert "at most 0.05 are allowed" in verdict.reason


def test_nan_fails_and_is_null_in_json() -> None:
    verdict = judge(PROOF, [{0: math.nan}], served_as(BASE))
    assert verdict.reason
    assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["divergence_nats"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"models": []},
        {"models": [{"name": "a"}]},
        {"models": [{"name": "a", "kind": "base", "kl_bound": 0.1, "questions": []}]},
        {"models": [{"name": "a", "kind": "base", "kl_bound": math.nan,
                     "questions": [question(BASE, [1])]}]},
        {"models": [{"name": "a", "kind": "base", "kl_bound": 0.1,
                     "questions": [{"prompt": [1], "top": [[1, 0.5]]}]}]},
        {"models": "x"},
        {"models": [{"name": "a", "kind": "merged", "kl_bound": 0.1,
                     "questions": [question(BASE, [1])]}]},
        {"models": [{"name": "a", "kind": "merged", "kl_bound": 0.1,
                     "questions": [{**question(BASE, [1]), "base": [-1.0]}]}]},
    ],
)  # fmt: skip
def test_damaged_proof_is_refused(change: dict[str, object]) -> None:
    assert len(parse_expected(expected_document()).models) == 3
    with pytest.raises(ExpectedError):
        parse_expected(expected_document() | change)
