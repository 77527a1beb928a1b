"""Chat-template parity, by token ids on the fixed conversations of `packager.chat`.

The GGUF's own Jinja through llama.cpp is held against the adapter's through transformers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packager.chat import CONVERSATIONS, Conversation, Rendering, chat_messages
from packager.errors import ProcessError, ProofError
from packager.process import run_program
from packager.verify.llama import split_parts, time_limit, worker_command, worker_environment
from packager.verify.proof import ChatCheck

_SHOWN_IDS = 6


def check_chat(
    model: Path, renderings: Sequence[Rendering], *, seconds: float | None = None
) -> ChatCheck:
    """Renders the conversations in llama.cpp and compares token ids.

    Args:
        model: A GGUF file; of a split model the first.
        renderings: What transformers makes of those conversations that the template takes.
        seconds: Time limit; by default one that grows with the file.

    Raises:
        ProofError: llama.cpp does not load the file, or does not answer.
    """
    bodies = [_chat_request(_conversation(item.conversation)) for item in renderings]
    found = _render(model, bodies, seconds)
    problems = []
    for wanted, chat in zip(renderings, found, strict=True):
        if "refused" in chat:
            problems.append(f"{wanted.conversation}: llama.cpp refuses it: {chat['refused'][:200]}")
        elif tuple(chat["ids"]) != wanted.ids:
            problems.append(f"{wanted.conversation}: {_first_difference(wanted.ids, chat['ids'])}")
    return ChatCheck(len(renderings), len(renderings) - len(problems), tuple(problems))


def _conversation(name: str) -> Conversation:
    return next(item for item in CONVERSATIONS if item.name == name)


def _chat_request(conversation: Conversation) -> dict[str, Any]:
    """The conversation as OpenAI's protocol has it, in which arguments are JSON text."""
    body: dict[str, Any] = {"messages": [_message(it) for it in chat_messages(conversation)]}
    if conversation.tools:
        body["tools"] = [dict(tool) for tool in conversation.tools]
    if conversation.think is not None:
        options = dict.fromkeys(("enable_thinking", "thinking"), conversation.think)
        body["chat_template_kwargs"] = options
    return body


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [
        {
            **call,
            "function": {**call["function"], "arguments": _json(call["function"]["arguments"])},
        }
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _render(
    model: Path, bodies: Sequence[Mapping[str, Any]], seconds: float | None
) -> list[dict[str, Any]]:
    request = {"model": str(model), "threads": os.cpu_count() or 1, "conversations": bodies}
    try:
        printed = run_program(
            worker_command("packager.verify.chatworker"),
            seconds=seconds if seconds is not None else time_limit(split_parts(model)),
            given=json.dumps(request).encode(),
            environment=worker_environment(),
        )
        answer: dict[str, Any] = json.loads(printed)
    except (ProcessError, ValueError) as problem:
        found = (problem.found or problem.what) if isinstance(problem, ProcessError) else "no JSON"
        raise _unanswered(model, found) from problem
    if "error" in answer:
        raise _unanswered(model, answer["error"])
    chats: list[dict[str, Any]] = answer["chats"]
    return chats


def _unanswered(model: Path, found: str) -> ProofError:
    return ProofError(
        "llama.cpp does not render the chat template of the file",
        where=str(model),
        found=found,
        hint="check the file with: lorapack verify BUNDLE --level weights",
    )


def _first_difference(wanted: Sequence[int], found: Sequence[int]) -> str:
    place = next(
        (n for n, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]),
        min(len(wanted), len(found)),
    )
    window = slice(max(0, place - 1), place + _SHOWN_IDS)
    return (
        f"token {place} differs: transformers has {list(wanted[window])} of {len(wanted)} tokens, "
        f"llama.cpp {list(found[window])} of {len(found)}"
    )
