"""`expected.json`: the answers that a server has to give before it is ready; writer and parser.

An answer is a distribution over the next token after a prompt of token ids, as base + adapter
give it by PEFT in float32. Of it stand here the most likely tokens; the others are one bin. The
server's figure is the Kullback-Leibler divergence over these bins, which is never more than the
whole one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from packager.errors import BundleError, InputError
from packager.record import check_fields
from packager.serving.value import ServedType
from packager.untrusted import parse_json_object

EXPECTED_NAME = "expected.json"
SCHEMA_VERSION = 1
_DIGITS = 7

NOISE: Mapping[ServedType, float] = {"bfloat16": 0.05, "float16": 2e-3, "float32": 1e-4}
"""Mean divergence in nats that computing in a type may cause at the places asked about.

Measured on SmolLM2-135M-Instruct, a hard case since larger models average rounding out, with two
adapters of effects 3.4 and 2.4: in bfloat16 0.019 and 0.001 by vLLM on a processor, 0.0007 for the
base; 0.003 by transformers. The first adapter at 0.7 of its scale is 1.0 off, at half of it 2.6,
at twice 1.6. float16 has 8 times finer steps, float32 2^16 times, and divergence goes with their
square; other orders of addition are allowed for.
"""

_SHARE = 0.01
_WEAK_SHARE = 0.25


@dataclass(frozen=True)
class Question:
    """A prompt, and the distribution of the token after it.

    Attributes:
        prompt: Token ids.
        tokens: The most likely next ones, most likely first.
        logprobs: Their natural logarithms of probability, by base + adapter.
        base: The same by the base alone, or none where the base itself is asked. A server of a
            merged model has no base that it could ask.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    base: tuple[float, ...] = ()


@dataclass(frozen=True)
class ExpectedModel:
    """What one served model has to answer.

    Attributes:
        name: Under which it is served.
        kind: What it is.
        effect: Mean divergence of the base's answers from these, in nats; 0 for the base.
        kl_bound: Largest mean divergence of the server's answers from these, in nats.
        questions: What it is asked.
    """

    name: str
    kind: Literal["base", "adapter", "merged"]
    effect: float
    kl_bound: float
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Expected:
    """The whole document.

    Attributes:
        schema_version: Of this document.
        truth: What made the answers.
        prompt_set: What the prompts were taken from.
        served_dtype: Type that the bounds are for.
        models: The base first; of a server of a merged model, that alone.
    """

    schema_version: int
    truth: str
    prompt_set: str
    served_dtype: ServedType
    models: tuple[ExpectedModel, ...]


Answers = dict[str, tuple[ExpectedModel, ...]]
"""Adapter → what base and adapter have to answer, in this order, or its merged model alone."""


def bound_divergence(effect: float, dtype: ServedType) -> float:
    """Returns the largest mean divergence of a served adapter from its truth, in nats.

    A weak adapter gets a tighter bound: the base's answers always lie above it.

    Args:
        effect: Mean divergence of the base's answers, in nats.
        dtype: That the server computes in.
    """
    return min(NOISE[dtype], _WEAK_SHARE * effect) + _SHARE * effect


def is_noticeable(effect: float, dtype: ServedType) -> bool:
    """Tells whether an adapter's effect can be told from what a type does to any model."""
    return effect >= NOISE[dtype]


def render_expected(expected: Expected) -> str:
    """Returns the text of `expected.json`."""
    document = {
        "schema_version": expected.schema_version,
        "truth": expected.truth,
        "prompt_set": expected.prompt_set,
        "served_dtype": expected.served_dtype,
        "models": [_model_document(model) for model in expected.models],
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


def parse_expected(text: str | bytes, *, where: str) -> Expected:
    """Parses what `render_expected` wrote.

    Raises:
        BundleError: Another schema, a wrong field, or a figure that is none.
    """
    try:
        raw = parse_json_object(text, where=where, constants=False)
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw['schema_version']!r:.40}")
        models = tuple(_parse_model(dict(item)) for item in raw.pop("models"))
        expected = Expected(models=models, **raw)
        check_fields(expected)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as problem:
        raise BundleError(
            "the expected answers are damaged",
            where=where,
            found=str(problem)[:200],
            hint="copy the bundle again, or release it again",
        ) from problem
    return expected


def _model_document(model: ExpectedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "effect": _rounded(model.effect),
        "kl_bound": _rounded(model.kl_bound),
        "questions": [_question_document(question) for question in model.questions],
    }


def _question_document(question: Question) -> dict[str, Any]:
    pairs = zip(question.tokens, question.logprobs, strict=True)
    document: dict[str, Any] = {
        "prompt": list(question.prompt),
        "top": [[token, _rounded(logprob)] for token, logprob in pairs],
    }
    if question.base:
        document["base"] = [_rounded(logprob) for logprob in question.base]
    return document


def _parse_model(raw: dict[str, Any]) -> ExpectedModel:
    questions = tuple(_parse_question(dict(item)) for item in raw.pop("questions"))
    model = ExpectedModel(questions=questions, **raw)
    check_fields(model)
    if not questions or not model.kl_bound > 0 or not math.isfinite(model.effect):
        raise ValueError(f"model {model.name!r:.80}")
    if model.kind == "merged" and not all(question.base for question in questions):
        raise ValueError(f"model {model.name!r:.80} without the base's answers")
    return model


def _parse_question(raw: dict[str, Any]) -> Question:
    pairs = raw.pop("top")
    question = Question(
        prompt=tuple(raw.pop("prompt")),
        tokens=tuple(token for token, _ in pairs),
        logprobs=tuple(logprob for _, logprob in pairs),
        base=tuple(raw.pop("base", ())),
    )
    check_fields(question)
    counts = {len(question.tokens), len(question.base) or len(question.tokens)}
    figures = (*question.logprobs, *question.base)
    if raw or not question.prompt or len(counts) != 1 or not all(map(math.isfinite, figures)):
        raise ValueError(f"a question with {question.tokens!r:.80}")
    return question


def _rounded(figure: float) -> float:
    return float(round(figure, _DIGITS))
