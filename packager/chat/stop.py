"""Where a turn ends: the tokens and texts after which the model has nothing more to say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packager.chat.conversation import Conversation, Turn
from packager.chat.rendering import render_text, special_texts
from packager.errors import InputError

_SAID = "qqanswerqq"
_ASKED = "qqquestionqq"
_PROBE = Conversation(
    "probe", (Turn("user", "Hello"), Turn("assistant", _SAID), Turn("user", _ASKED))
)


def find_stops(tokenizer: Any, end_ids: Iterable[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the texts that end a turn, and the ids of those that are one token.

    They are what the chat template writes behind an answer, the tokenizer's own end of sequence,
    and those of the generation configuration.

    Args:
        tokenizer: Of transformers, with or without a chat template.
        end_ids: `eos_token_id` of the generation configuration.
    """
    tokens = special_texts(tokenizer)
    ids = [*_turn_end_ids(tokenizer), *_own_end(tokenizer), *end_ids]
    known = [number for number in dict.fromkeys(ids) if number in tokens]
    texts = [tokens[number] for number in known]
    if not known:
        # Without a token of its own, a turn ends where the next one would begin.
        header = _after_answer(tokenizer).strip()
        texts = [header] if header else []
    return tuple(texts), tuple(known)


def _own_end(tokenizer: Any) -> list[int]:
    number = getattr(tokenizer, "eos_token_id", None)
    return [number] if isinstance(number, int) else []


def _turn_end_ids(tokenizer: Any) -> list[int]:
    """Returns the token with which the text behind an answer begins, if it begins with one."""
    behind = _after_answer(tokenizer).lstrip()
    fitting = [
        (len(text), number)
        for number, text in special_texts(tokenizer).items()
        if text.strip() and behind.startswith(text)
    ]
    return [max(fitting)[1]] if fitting else []


def _after_answer(tokenizer: Any) -> str:
    """Returns what the template writes between an answer and the next question."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        text = render_text(tokenizer, _PROBE)
    except InputError:
        # A template for single questions says nothing about what follows.
        return ""
    _, _, behind = text.partition(_SAID)
    return behind.partition(_ASKED)[0] if _ASKED in behind else ""
