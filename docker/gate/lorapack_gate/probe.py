"""The probe: asks every served name what the proof asked, and judges the answers.

vLLM 0.32.0 loads an adapter whose tensor names fit nothing without a word, lists it, and answers
as the base. Only asking it shows that. Base and adapters are asked at the same time: batches that
mix them go other ways through the engine than those that do not. A whole model has no base beside
it: its answers are held against those that the proof recorded of the base.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from lorapack_gate.expected import Expected, ExpectedModel, Question
from lorapack_gate.judge import Answer, Verdict, judge

Ask = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""(method, path, body) → (status, body), sent to the server behind the gate."""

_TOLD = 20
"""Log-probabilities asked for; vLLM's own limit, --max-logprobs, is this by default."""
_AT_ONCE = 8
_TRIES = 3
_PAUSE_SECONDS = 1.0


class ProbeError(Exception):
    """The server does not answer what the probe asks."""


async def probe(expected: Expected, base: str, ask: Ask) -> tuple[Verdict, ...]:
    """Asks every model, and judges the answers.

    Args:
        expected: What the proof says.
        base: The base's served name; empty where there is none.
        ask: Sends a request.

    Raises:
        ProbeError: An answer has not the form that it should have.
    """
    gate = asyncio.Semaphore(_AT_ONCE)
    known: dict[tuple[str, Question], asyncio.Task[Answer]] = {}

    async def answer(model: str, question: Question) -> Answer:
        async with gate:
            return await _ask(model, question, ask)

    def begin(model: str, questions: Sequence[Question]) -> list[asyncio.Task[Answer]]:
        for question in questions:
            if (model, question) not in known:
                known[model, question] = asyncio.create_task(answer(model, question))
        return [known[model, question] for question in questions]

    asked = [
        (
            model,
            begin(model.name, model.questions),
            begin(base, model.questions) if model.kind == "adapter" else [],
        )
        for model in expected.models
    ]
    try:
        await asyncio.gather(*known.values())
    finally:
        for task in known.values():
            task.cancel()
    return tuple(
        judge(model, _results(own), _base_answers(model, _results(others)))
        for model, own, others in asked
    )


def _base_answers(model: ExpectedModel, served: Sequence[Answer]) -> Sequence[Answer] | None:
    if model.kind == "merged":
        return [question.base_answer for question in model.questions]
    return served if model.kind == "adapter" else None


def _results(tasks: Sequence[asyncio.Task[Answer]]) -> list[Answer]:
    return [task.result() for task in tasks]


async def _ask(model: str, question: Question, ask: Ask) -> Answer:
    request = {
        "model": model,
        "prompt": list(question.prompt),
        "max_tokens": 1,
        "temperature": 0,
        # A server that knows the first of these tells exactly the tokens that the proof tells.
        "logprob_token_ids": [token for token, _ in question.top],
        "logprobs": _TOLD,
        "return_tokens_as_token_ids": True,
    }
    body = json.dumps(request).encode()
    status, answer = 0, b""
    for attempt in range(_TRIES):
        if attempt:
            await asyncio.sleep(_PAUSE_SECONDS)
        status, answer = await ask("POST", "/v1/completions", body)
        if status < 500:
            break
    if status != 200:
        raise ProbeError(
            f"the server refused to answer as {model!r}: status {status}, {answer[:300]!r}"
        )
    return parse_answer(answer)


def parse_answer(body: bytes) -> Answer:
    """Reads the log-probabilities of the next token from a completion.

    Source: vLLM 0.32.0, entrypoints/openai/completion: with `return_tokens_as_token_ids`, tokens
    are told as `token_id:<n>`; `top_logprobs` holds one mapping for each token of the answer.

    Raises:
        ProbeError: There are none.
    """
    try:
        told = json.loads(body)["choices"][0]["logprobs"]["top_logprobs"][0]
        return {int(name.removeprefix("token_id:")): float(value) for name, value in told.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        raise ProbeError(f"an answer without log-probabilities: {body[:300]!r}") from problem
