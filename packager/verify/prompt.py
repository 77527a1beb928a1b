"""The fixed prompt set of the behaviour proof, and its way into token ids.

The set is data with a version: whoever changes a prompt gives the set a new name, because proofs
are only comparable when they were made on the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

Role = Literal["system", "user", "assistant"]

PROMPT_SET = "lorapack-prompts-1"
"""Name and version of `PROMPTS`."""

MAX_PROMPT_TOKENS = 160
"""A template with a long preamble is cut to this many tokens, so that cost stays bounded."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user, with a short name for reports."""

    name: str
    messages: tuple[Message, ...]


def _ask(name: str, text: str) -> Prompt:
    return Prompt(name, (Message("user", text),))


PROMPTS: tuple[Prompt, ...] = (
    _ask("english-fact", "What is the capital of Italy, and which river runs through it?"),
    _ask("english-who", "Who are you? Answer in one sentence."),
    _ask("english-story", "Write the first two sentences of a story about a lighthouse keeper."),
    _ask("english-advice", "My bicycle chain keeps falling off. What should I check first?"),
    _ask("chinese", "请用一句话解释为什么天空是蓝色的。"),
    _ask("japanese", "日本で一番高い山は何ですか。短く答えてください。"),
    _ask("arabic", "ما هي عاصمة مصر، وبماذا تشتهر؟"),
    _ask("hindi", "भारत की राजधानी क्या है? एक वाक्य में बताइए।"),
    _ask("russian", "Назови три времени года, кроме зимы."),
    _ask("spanish-french", "Traduis en français : « ¿Dónde está la estación de tren? »"),
    _ask("code", "Write a Python function `is_prime(n: int) -> bool`. Only the code."),
    _ask("maths", "A train travels 180 km in 2.5 hours. What is its average speed in km/h?"),
    _ask("emoji", "What do these mean together? 🌧️ + ☀️ = 🌈 👩‍🚀🏳️‍🌈"),
    _ask("data", 'Return this as JSON: name Zoë O\'Neill, age 41, e-mail "zoe@example.org".'),
    Prompt(
        "system",
        (
            Message("system", "You are a careful librarian. Reply briefly and politely."),
            Message("user", "Can you recommend a book about the sea?"),
        ),
    ),
    Prompt(
        "multi-turn",
        (
            Message("user", "I have two cats, Miso and Yuzu."),
            Message("assistant", "Lovely names! How old are they?"),
            Message("user", "Miso is three and Yuzu is five. Who is older?"),
        ),
    ),
)
"""Sixteen short prompts: several scripts, code, numbers, emoji, a system text, several turns."""

_TEMPLATE_REFUSALS = (TemplateError, ValueError, TypeError, LookupError, ArithmeticError)
"""What a chat template raises for a conversation that it does not take."""


def encode_prompt(prompt: Prompt, tokenizer: Any | None, *, vocabulary: int) -> tuple[int, ...]:
    """Returns the token ids of a prompt, at least one, all below `vocabulary`.

    With a chat template the prompt goes through it, up to the start of the answer. A template
    that takes no system text gets it at the head of the user's turn, as Gemma's and Mistral's
    users do by hand. Without a template the turns are joined by newlines. Without a tokenizer
    (models that are fed numbers) the ids are the UTF-8 bytes.

    Args:
        prompt: From `PROMPTS`.
        tokenizer: A transformers tokenizer, or None.
        vocabulary: Rows of the model's embedding. A larger id is wrapped round: such a
            tokenizer is refused when a release is planned, so this is for models of bytes only.
    """
    ids = _encode(prompt, tokenizer)
    if len(ids) > MAX_PROMPT_TOKENS:
        ids = cut_prompt(ids, MAX_PROMPT_TOKENS)
    return tuple(token % vocabulary for token in ids) or (0,)


def cut_prompt(ids: Sequence[int], limit: int) -> tuple[int, ...]:
    """Returns at most `limit` ids: the first one (a BOS where there is one), then the end."""
    if len(ids) <= limit:
        return tuple(ids)
    return (ids[0], *ids[len(ids) - limit + 1 :])


def _encode(prompt: Prompt, tokenizer: Any | None) -> tuple[int, ...]:
    text = "\n".join(message.content for message in prompt.messages)
    if tokenizer is None:
        return tuple(text.encode())
    if getattr(tokenizer, "chat_template", None):
        for messages in (_as_given(prompt), _without_system(prompt)):
            try:
                rendered = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
            except _TEMPLATE_REFUSALS:
                continue
            return tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return tuple(tokenizer(text)["input_ids"])


def _as_given(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _without_system(prompt: Prompt) -> list[dict[str, str]]:
    messages = _as_given(prompt)
    if messages[0]["role"] == "system":
        system, user, *rest = messages
        joined = f"{system['content']}\n\n{user['content']}"
        return [{"role": "user", "content": joined}, *rest]
    return messages
