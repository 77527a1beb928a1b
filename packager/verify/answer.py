"""Level `behaviour` of an adapter as a server loads it, and the answers that the server must give.

What a server computes is not known before it runs. Known is the truth; and that PEFT, with the
normalised adapter in float32, gives the same. The rest is for the server to show: at the most
telling places of the proof's text it is asked for the next token, and is ready only if its answers
are those that are recorded here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packager.errors import WeakEffectError
from packager.serving.answer import (
    NOISE,
    Expected,
    ExpectedModel,
    Question,
    bound_divergence,
    is_noticeable,
)
from packager.serving.value import ServedType
from packager.verify.behaviour import OnStep, Truth, compare
from packager.verify.judge import MERGED_BOUNDS
from packager.verify.model import attach_adapter, load_base, quiet
from packager.verify.proof import BehaviourCheck

MAX_QUESTIONS = 8
_BINS = 8
"""Tokens whose probability stands in an answer; the others are one bin."""

_LEAST = 1e-6
"""Probability of the last bin below which nothing is told from rounding."""

_NEAR = 5e-3
"""What another machine's order of additions moves a log-probability in float32, in nats."""


@dataclass(frozen=True)
class ServedCheck:
    """What came of it.

    Attributes:
        behaviour: Of the normalised adapter by PEFT, in float32.
        base: What the base has to answer.
        adapter: What the adapter has to answer.
    """

    behaviour: BehaviourCheck
    base: ExpectedModel
    adapter: ExpectedModel


@dataclass(frozen=True)
class _Place:
    """A passage, and the row of its logits that predicts the token asked for."""

    passage: int
    row: int


def check_served(
    truth: Truth,
    base_dir: Path,
    adapter_dir: Path,
    names: tuple[str, str],
    dtype: ServedType,
    *,
    recorded: Expected | None = None,
    progress: OnStep,
) -> ServedCheck:
    """Runs base + normalised adapter (PEFT, float32), and makes the answers to expect.

    Args:
        truth: Of the adapter as trained.
        base_dir: The base.
        adapter_dir: The normalised adapter, by names that PEFT knows.
        names: Of base and adapter, as served.
        dtype: That the server computes in.
        recorded: The answers that the folder holds, where they were made before.
        progress: Told about every passage.

    Raises:
        BaseError: The base cannot be loaded.
        AdapterError: PEFT cannot load the normalised adapter.
        ProofError: It predicts over another vocabulary.
    """
    base_name, name = names
    loaded = attach_adapter(load_base(base_dir), adapter_dir)
    rows = _passages(loaded.model, truth, progress)
    behaviour = compare(truth, rows, bounds=MERGED_BOUNDS["F32"])
    questions, own = ask(loaded.model, truth)
    effect = mean_effect(questions)
    if recorded is not None:
        problems = _check_recorded(loaded.model, recorded, names, dtype)
        behaviour = replace(behaviour, problems=(*behaviour.problems, *problems))
    bound = bound_divergence(effect, dtype)
    return ServedCheck(
        behaviour,
        ExpectedModel(base_name, "base", 0.0, NOISE[dtype], own),
        ExpectedModel(name, "adapter", effect, bound, questions),
    )


def check_effect(name: str, effect: float, dtype: ServedType) -> None:
    """Refuses an adapter whose effect a server which computes in a type could not show.

    Args:
        name: Of the adapter.
        effect: In nats.
        dtype: That the server computes in.

    Raises:
        WeakEffectError: It could not.
    """
    if is_noticeable(effect, dtype):
        return
    raise WeakEffectError(
        f"an effect of {effect:.2g} nats cannot be told from what {dtype} does to any model",
        where=f"vllm/{name}",
        expected=f"at least {NOISE[dtype]:g} nats",
        hint="a server that computes in float32 tells smaller effects: add --dtype float32",
    )


def mean_effect(questions: Sequence[Question]) -> float:
    """Mean divergence of the base's answers from the adapter's, in nats."""
    return mean_divergence(questions, [question.base for question in questions])


def mean_divergence(questions: Sequence[Question], answers: Sequence[Sequence[float]]) -> float:
    """Mean divergence of answers from the truth, in nats.

    Args:
        questions: With the truth.
        answers: For each, the log-probabilities of its tokens.
    """
    pairs = zip(questions, answers, strict=True)
    return math.fsum(_divergence(item.logprobs, found) for item, found in pairs) / len(questions)


def _divergence(truth: Sequence[float], other: Sequence[float]) -> float:
    known = math.fsum(math.exp(p) * (p - q) for p, q in zip(truth, other, strict=True))
    rest, left = (max(_LEAST, 1.0 - math.fsum(map(math.exp, item))) for item in (truth, other))
    return max(0.0, known + rest * math.log(rest / left))


def _check_recorded(
    model: Any, recorded: Expected, names: tuple[str, str], dtype: ServedType
) -> tuple[str, ...]:
    """Answers the recorded questions once more; one line for each model whose answers differ.

    The questions themselves are not made again: where continuations part on near-ties, another
    machine would ask others.
    """
    by_name = {item.name: item for item in recorded.models}
    base, adapter = (by_name.get(name) for name in names)
    problems = []
    if base is None or any(not _is_right(model, item, base=True) for item in base.questions):
        problems.append(f"the answers recorded for {names[0]} are not the base's")
    return (*problems, *check_own(model, adapter, names[1], recorded.served_dtype, dtype))


def check_own(
    model: Any, own: ExpectedModel | None, name: str, recorded: ServedType, dtype: ServedType
) -> tuple[str, ...]:
    """Answers the questions recorded for an adapter once more; at most one line of a problem.

    Args:
        model: Base + adapter, by PEFT.
        own: What is recorded, or None.
        name: Of the adapter.
        recorded: Type that the bounds are recorded for.
        dtype: That the server computes in.
    """
    if own is None or any(not _is_right(model, item) for item in own.questions):
        return (f"the answers recorded for {name} are not those of base + adapter",)
    bound = bound_divergence(mean_effect(own.questions), dtype)
    if recorded != dtype or not math.isclose(own.kl_bound, bound, rel_tol=0.01):
        return (f"the bound recorded for {name} is not the one of {dtype}",)
    return ()


def _is_right(model: Any, question: Question, *, base: bool = False) -> bool:
    """Tells whether a recorded answer is that of base + adapter, or of the base."""
    limit = model.get_input_embeddings().weight.shape[0]
    if not all(0 <= token < limit for token in (*question.prompt, *question.tokens)):
        return False
    with model.disable_adapter():
        alone = answer(model, question)
    wanted = [(alone, question.logprobs if base else question.base)]
    if not base:
        wanted.append((answer(model, question), question.logprobs))
    return all(
        len(found) == len(recorded)
        and all(abs(one - other) <= _NEAR for one, other in zip(found, recorded, strict=True))
        for found, recorded in wanted
    )


def answer(model: Any, question: Question) -> list[float]:
    """Returns a model's log-probabilities of a question's tokens, in nats."""
    with quiet(), torch.inference_mode():
        output = model(input_ids=torch.tensor([question.prompt]), use_cache=False)
        logprobs = torch.log_softmax(output.logits[0, -1].double(), -1)
    found: list[float] = logprobs[list(question.tokens)].tolist()
    return found


def _passages(model: Any, truth: Truth, progress: OnStep) -> Iterator[Tensor]:
    for number, ids in enumerate(truth.passages):
        progress("normalised adapter", number, len(truth.passages))
        with quiet(), torch.inference_mode():
            rows = _logits(model, ids)
        # Outside: a reader that gives up half-way would leave these modes on behind it.
        yield rows
    progress("normalised adapter", len(truth.passages), len(truth.passages))


def _logits(model: Any, ids: tuple[int, ...]) -> Tensor:
    output = model(input_ids=torch.tensor([ids]), use_cache=False)
    logits: Tensor = output.logits[0, :-1].float().contiguous()
    return logits


def _find_places(truth: Truth) -> tuple[_Place, ...]:
    """The most telling place of each passage, of those passages that tell most.

    Base and adapter have to differ there, and the adapter has to hesitate: where it is sure of a
    token, it stays sure of it at half its scale or twice, and a server that gets the scale wrong
    would not be found out.
    """
    found, first = [], 0
    for passage, logits in enumerate(truth.read_logits()):
        distances = torch.tensor(truth.base_kl[first : first + len(logits)], dtype=torch.float64)
        first += len(logits)
        telling = torch.minimum(distances, _entropy(logits))
        found.append((float(telling.max()), _Place(passage, int(telling.argmax()))))
    found.sort(key=lambda item: -item[0])
    return tuple(place for _, place in found[:MAX_QUESTIONS])


def _entropy(logits: Tensor) -> Tensor:
    """In nats, of each row."""
    logprobs = torch.log_softmax(logits.double(), -1)
    return -(logprobs.exp() * logprobs).sum(-1)


def ask(model: Any, truth: Truth) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Returns the questions of the adapter, most telling first, and the same of the base alone.

    Args:
        model: Base + adapter, by PEFT.
        truth: Of the adapter.
    """
    places = _find_places(truth)
    rows = {place.passage: place.row for place in places}
    asked: dict[int, Question] = {}
    alone: dict[int, Question] = {}
    for number, logits in enumerate(truth.read_logits()):
        if number not in rows:
            continue
        ids, row = truth.passages[number], rows[number]
        with quiet(), torch.inference_mode(), model.disable_adapter():
            base = torch.log_softmax(_logits(model, ids)[row].double(), -1)
        own = torch.log_softmax(logits[row].double(), -1)
        prompt = ids[: row + 1]
        asked[number] = _question(prompt, own, base)
        alone[number] = _question(prompt, base, None)
    order = [place.passage for place in places]
    return tuple(asked[number] for number in order), tuple(alone[number] for number in order)


def _question(prompt: tuple[int, ...], truth: Tensor, base: Tensor | None) -> Question:
    best = torch.topk(truth, min(_BINS, len(truth))).indices
    others = () if base is None else tuple(base[best].tolist())
    return Question(prompt, tuple(best.tolist()), tuple(truth[best].tolist()), others)
