"""Training conversations: JSON Lines of chat messages, as trainers and chat APIs write them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.errors import InputError
from packager.untrusted import parse_json_object, read_text

MAX_DATASET_BYTES = 256 << 20
"""The largest dataset that is read, in bytes: it is held in memory."""

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One conversation; its last message is the answer to learn.

    Attributes:
        messages: (role, content) pairs, in order.
    """

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def from_pair(cls, question: str, answer: str) -> Example:
        """Makes a conversation of one question and its answer."""
        return cls((("user", question), ("assistant", answer)))

    def to_chat(self) -> list[dict[str, str]]:
        """Returns the messages as chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.messages]


def read_examples(path: Path) -> tuple[Example, ...]:
    """Reads a dataset: one JSON object a line, as `parse_examples` describes.

    Raises:
        InputError: The file cannot be read, is too large, or a line is not a conversation.
    """
    return parse_examples(read_text(path, max_bytes=MAX_DATASET_BYTES), where=str(path))


def parse_examples(text: str, *, where: str) -> tuple[Example, ...]:
    """Parses JSON Lines of `{"messages": [{"role": …, "content": …}, …]}`.

    The last message of a conversation is the assistant's. Empty lines are passed over.

    Raises:
        InputError: A line is not such an object, or there is no line at all.
    """
    # Only line feeds end a line: text may hold U+2028 and other line separators.
    lines = enumerate(text.split("\n"), start=1)
    examples = tuple(
        _parse_example(line, where=f"{where}, line {number}")
        for number, line in lines
        if line.strip()
    )
    if not examples:
        raise InputError(
            "the dataset is empty",
            where=where,
            expected='at least one line {"messages": [...]}',
            hint="write one conversation a line",
        )
    return examples


def _parse_example(line: str, *, where: str) -> Example:
    raw = parse_json_object(line, where=where).get("messages")
    if not isinstance(raw, list) or not raw:
        raise _wrong(where, 'a list "messages"', repr(raw)[:80])
    messages = tuple(_parse_message(item, where=where) for item in raw)
    if messages[-1][0] != "assistant":
        raise _wrong(where, "the assistant's answer as the last message", messages[-1][0])
    return Example(messages)


def _parse_message(raw: Any, *, where: str) -> tuple[str, str]:
    role = raw.get("role") if isinstance(raw, dict) else None
    content = raw.get("content") if isinstance(raw, dict) else None
    if role not in _ROLES or not isinstance(content, str):
        raise _wrong(where, f'"role" {" | ".join(_ROLES)} and a text "content"', repr(raw)[:80])
    return role, content


def _wrong(where: str, expected: str, found: str) -> InputError:
    return InputError(
        "this line is not a conversation",
        where=where,
        expected=expected,
        found=found,
        hint='write {"messages": [{"role": "user", "content": "…"}, '
        '{"role": "assistant", "content": "…"}]}',
    )
