"""Whether served answers are those of the proof: pure arithmetic on log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorapack_gate.expected import ExpectedModel, Question

Answer = Mapping[int, float]
"""Token id → natural log-probability, of the likeliest tokens that the server told."""

_LEAST = 1e-6
"""Probability below which what is left over cannot be told from rounding."""


@dataclass(frozen=True)
class Verdict:
    """What came of asking one served name.

    Attributes:
        name: As served.
        kind: `base`, `adapter` or `merged`.
        divergence: Mean divergence of its answers from the truth, in nats.
        bound: Largest one that is agreement.
        base_divergence: The same of the base's answers to the same questions; None for the base.
        reason: Why it failed, or nothing.
    """

    name: str
    kind: str
    divergence: float
    bound: float
    base_divergence: float | None
    reason: str

    def to_json(self) -> dict[str, object]:
        """Returns the fields as JSON takes them: what is not finite becomes null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "passed": not self.reason,
            "divergence_nats": _finite(self.divergence),
            "bound_nats": self.bound,
            "base_divergence_nats": _finite(self.base_divergence),
            "reason": self.reason or None,
        }


def judge(
    model: ExpectedModel, answers: Sequence[Answer], base_answers: Sequence[Answer] | None
) -> Verdict:
    """Judges the answers of one model.

    Args:
        model: What the proof says.
        answers: Of this model, one for each question.
        base_answers: Of the base to the same questions, served beside an adapter, or as the proof
            recorded them where a whole model is served; None if the model is the base.
    """
    divergence = mean_divergence(model.questions, answers)
    base = None if base_answers is None else mean_divergence(model.questions, base_answers)
    return Verdict(
        name=model.name,
        kind=model.kind,
        divergence=divergence,
        bound=model.bound,
        base_divergence=base,
        reason=_reason(model, divergence, base),
    )


def mean_divergence(questions: Sequence[Question], answers: Sequence[Answer]) -> float:
    """Returns the mean of `divergence`, in nats; infinite where an answer is no distribution."""
    pairs = zip(questions, answers, strict=True)
    return math.fsum(divergence(question, answer) for question, answer in pairs) / len(questions)


def divergence(question: Question, answer: Answer) -> float:
    """Returns D(truth ‖ served) over the truth's tokens and one bin for all others, in nats.

    It is at most the divergence over the whole vocabulary. A token that the server did not tell
    counts with the smallest log-probability that it told, which can only bring the two closer.
    """
    if not answer or not all(math.isfinite(value) for value in answer.values()):
        return math.inf
    least = min(answer.values())
    served = [answer.get(token, least) for token, _ in question.top]
    truth = [value for _, value in question.top]
    parts = [math.exp(p) * (p - q) for p, q in zip(truth, served, strict=True)]
    truth_rest = 1 - math.fsum(map(math.exp, truth))
    if truth_rest > _LEAST:
        served_rest = max(_LEAST, 1 - math.fsum(map(math.exp, served)))
        parts.append(truth_rest * (math.log(truth_rest) - math.log(served_rest)))
    return max(0.0, math.fsum(parts))


def _reason(model: ExpectedModel, served: float, base: float | None) -> str:
    if base is not None and not served < base / 2:
        cause = "it is another model" if model.kind == "merged" else "its weights are not applied"
        return (
            f"{_called(model)} answers as the base does: {served:.3g} nats from the proof, "
            f"and the base itself {base:.3g}; {cause}"
        )
    if not served <= model.bound:
        return (
            f"{_called(model)} does not answer as in the proof: {served:.3g} nats from "
            f"it, and at most {model.bound:.3g} are allowed"
        )
    return ""


def _called(model: ExpectedModel) -> str:
    return f"{'merged model' if model.kind == 'merged' else model.kind} {model.name!r}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
