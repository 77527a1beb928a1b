"""Vectors of models without a head: what passes, what does not, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from packager.errors import ProofError
from packager.verify.behaviour import Truth, check_merged, compare, measure_truth
from packager.verify.embedding import VECTOR_BOUNDS, check_embedding, compare_vectors
from packager.verify.judge import MERGED_BOUNDS
from packager.verify.proof import EmbeddingCheck, Proof, proof_document
from packager.verify.reading import READINGS
from packager.verify.report import render_report
from packager.verify.wording import judge_proof, level_results
from tests.task.conftest import Case

READING = READINGS["FEATURE_EXTRACTION"]
BOUNDS = VECTOR_BOUNDS["F32"]


@pytest.fixture(scope="module")
def case(make_case: Callable[[str], Case]) -> Case:
    return make_case("bert-vectors")


@pytest.fixture(scope="module")
def truth(case: Case) -> Iterator[Truth]:
    with measure_truth(case.base, case.adapter, case.base, reading=READING) as measured:
        yield measured


@pytest.fixture(scope="module")
def without(case: Case, truth: Truth) -> list[Tensor]:
    """The base's own vectors."""
    model = case.load_base()
    with torch.inference_mode():
        return [READING.rows(model, text) for text in truth.texts]


def check(truth: Truth, rows: list[Tensor]) -> EmbeddingCheck:
    return compare_vectors(truth, rows, bounds=BOUNDS)


def test_the_truth_itself_is_not_off(truth: Truth) -> None:
    found = check(truth, list(truth.read_logits()))
    assert found.problems == ()
    assert found.error_mean == found.error_max == found.effect_lost == 0.0
    assert found.cosine_min == pytest.approx(1.0, abs=1e-12)
    assert found.tokens == sum(len(ids) for ids in truth.passages)
    assert found.prompts == 16


def test_a_model_without_the_adapter_fails(truth: Truth, without: list[Tensor]) -> None:
    found = check(truth, without)
    assert found.effect_lost == pytest.approx(1.0)
    assert found.error_mean == pytest.approx(found.base_error)
    assert {line.split()[0] for line in found.problems} >= {"error_mean", "effect_lost"}
    assert found.cosine_min < 0.999


def test_half_of_the_adapter_fails(truth: Truth, without: list[Tensor]) -> None:
    half = [(a + b) / 2 for a, b in zip(truth.read_logits(), without, strict=True)]
    found = check(truth, half)
    assert found.effect_lost == pytest.approx(0.5, rel=1e-4)
    assert found.problems


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_vectors_hold_the_bounds_of_their_type(truth: Truth, dtype: torch.dtype) -> None:
    bounds = VECTOR_BOUNDS[{torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]]
    rounded = [rows.to(dtype).float() for rows in truth.read_logits()]
    assert compare_vectors(truth, rounded, bounds=bounds).problems == ()
    assert compare_vectors(truth, rounded, bounds=BOUNDS).problems


def test_values_that_are_no_numbers_fail(truth: Truth) -> None:
    broken = [rows.clone() for rows in truth.read_logits()]
    broken[3][1, 2] = torch.nan
    found = check(truth, broken)
    assert found.problems
    assert found.cosine_min == -1.0


def test_vectors_of_another_width_are_refused(truth: Truth) -> None:
    with pytest.raises(ProofError, match="another vocabulary"):
        check(truth, [rows[:, :-1] for rows in truth.read_logits()])


def test_a_merged_model_is_reloaded(case: Case, truth: Truth) -> None:
    found = check_embedding(truth, case.merged)
    assert found.problems == ()
    assert 0 < found.error_mean < 1e-5


def test_it_is_told_in_words_and_on_the_page(case: Case, without: list[Tensor]) -> None:
    proof = case.made.proof
    (target,) = proof.targets
    lines = level_results(target)[2].lines
    assert lines[0].startswith(("99.99", "100"))
    assert "least cosine 1.000000 over" in lines[1]
    assert judge_proof(proof).tone == "passed"
    assert "gives the vectors that base and adapter give together" in judge_proof(proof).sentence
    page = render_report(proof)
    assert "Least cosine" in page
    document = proof_document(proof)["targets"][0]
    assert document["embedding"]["prompts"] == 16
    assert document["behaviour"] is None


def test_a_failed_comparison_fails_the_proof(
    case: Case, truth: Truth, without: list[Tensor]
) -> None:
    failed = check(truth, without)
    (target,) = case.made.proof.targets
    worse = replace(target, embedding=failed)
    proof: Proof = replace(case.made.proof, targets=(worse,))
    assert not proof.passed
    assert level_results(worse)[2].tone == "failed"
    assert judge_proof(proof).tone == "failed"


@pytest.mark.parametrize("name", ["bert-classes", "bert-labels", "bert-spans", "t5-text"])
def test_other_tasks_fail_without_the_adapter(name: str, make_case: Callable[[str], Case]) -> None:
    case = make_case(name)
    reading = READINGS[case.trained.task]
    labels = 3 if case.trained.task in ("SEQ_CLS", "TOKEN_CLS") else None
    with measure_truth(
        case.base, case.adapter, case.base, reading=reading, labels=labels
    ) as measured:
        sound = check_merged(measured, case.merged)
        assert sound.problems == ()
        model = case.load_peft()
        with torch.inference_mode(), model.disable_adapter():
            rows = [reading.rows(model, text) for text in measured.texts]
        found = compare(measured, rows, bounds=MERGED_BOUNDS["F32"])
    assert found.effect_lost > 0.05
    assert {line.split()[0] for line in found.problems} >= {"kl_mean", "effect_lost"}
