"""`expected.json`: what the proof says that base, adapters and whole models answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 1


class ExpectedError(Exception):
    """The document is not what it should be."""


@dataclass(frozen=True)
class Question:
    """A prompt with the truth about the token that follows it.

    Attributes:
        prompt: Token ids.
        top: (token id, natural log-probability) of the likeliest tokens, the likeliest first.
        base: Natural log-probabilities of the same tokens by the base, as they were when the
            proof was made; empty where the base itself is asked.
    """

    prompt: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    base: tuple[float, ...] = ()

    @property
    def base_answer(self) -> dict[int, float]:
        """What the base answered: token id → log-probability."""
        return {token: value for (token, _), value in zip(self.top, self.base, strict=True)}


@dataclass(frozen=True)
class ExpectedModel:
    """What one served name should answer.

    Attributes:
        name: As served.
        kind: `base`, `adapter`, or `merged` for a whole model.
        bound: Largest mean divergence from the truth, in nats, that still is agreement.
        questions: At least one.
    """

    name: str
    kind: str
    bound: float
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Expected:
    """The whole document."""

    models: tuple[ExpectedModel, ...]


def parse_expected(raw: Any) -> Expected:
    """Reads the document from what JSON made of it.

    Raises:
        ExpectedError: A schema, field or figure that is not one.
    """
    try:
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ExpectedError(f"schema_version {raw['schema_version']!r:.40}")
        models = tuple(_model(item) for item in raw["models"])
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ExpectedError(f"{type(problem).__name__}: {problem}") from problem
    if not models:
        raise ExpectedError("no model")
    return Expected(models)


def _model(raw: Mapping[str, Any]) -> ExpectedModel:
    model = ExpectedModel(
        name=str(raw["name"]),
        kind=str(raw["kind"]),
        bound=float(raw["kl_bound"]),
        questions=tuple(_question(item) for item in raw["questions"]),
    )
    if not model.questions or not (math.isfinite(model.bound) and model.bound > 0):
        raise ExpectedError(f"model {model.name!r:.80} has no questions or no bound")
    if model.kind == "merged" and not all(question.base for question in model.questions):
        raise ExpectedError(f"model {model.name!r:.80} has no answers of its base")
    return model


def _question(raw: Mapping[str, Any]) -> Question:
    question = Question(
        prompt=tuple(int(token) for token in raw["prompt"]),
        top=tuple((int(token), float(value)) for token, value in raw["top"]),
        base=tuple(float(value) for value in raw.get("base", ())),
    )
    told = [*(value for _, value in question.top), *question.base]
    likely = all(math.isfinite(value) and value <= 0 for value in told)
    if len(question.base) not in (0, len(question.top)):
        raise ExpectedError("a question with another number of the base's answers")
    if not question.prompt or not question.top or not likely:
        raise ExpectedError("a question without a prompt or without log-probabilities")
    return question
