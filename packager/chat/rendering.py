"""A conversation through a model's own chat template, to text and token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.chat.conversation import Conversation, chat_messages
from packager.errors import InputError

MAX_CHARACTERS = 1 << 20
"""The longest rendering of a fixed conversation that is taken for one."""


class ChatSyntaxError(InputError):
    """A chat template does not parse."""

    kind = "chat-syntax"


@dataclass(frozen=True)
class Rendering:
    """What a template makes of a conversation.

    Attributes:
        conversation: Its name.
        text: The prompt.
        ids: Its token ids, as training and transformers have them.
    """

    conversation: str
    text: str
    ids: tuple[int, ...]


def chat_templates(tokenizer: Any) -> tuple[str, dict[str, str]]:
    """Returns a tokenizer's default chat template, or nothing, and the named ones beside it.

    Raises:
        InputError: There are named templates only, and none of them is the default.
    """
    found = getattr(tokenizer, "chat_template", None) or ""
    if isinstance(found, str):
        return found, {}
    named = dict(found)
    if "default" not in named:
        raise InputError(
            "no chat template is the default one",
            where="the tokenizer's chat_template",
            found=", ".join(sorted(map(str, named)))[:200],
            hint="name one of them `default`, or keep only one",
        )
    return named.pop("default"), named


def render_text(tokenizer: Any, conversation: Conversation, *, jinja: str | None = None) -> str:
    """Returns the prompt that ends where the assistant is to speak.

    A stranger's template runs in transformers' sandbox, but takes the time that it takes: to be
    called where that is bounded.

    Args:
        tokenizer: A tokenizer of transformers.
        conversation: What to render.
        jinja: The template, by default the tokenizer's own.

    Raises:
        ChatSyntaxError: The template does not parse.
        InputError: The template refuses the conversation, or fails.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    options: dict[str, Any] = {}
    if conversation.think is not None:
        # Templates ask by either name.
        options = dict.fromkeys(("enable_thinking", "thinking"), conversation.think)
    try:
        text = tokenizer.apply_chat_template(
            chat_messages(conversation),
            tools=[dict(tool) for tool in conversation.tools] or None,
            chat_template=jinja,
            add_generation_prompt=True,
            tokenize=False,
            **options,
        )
    except TemplateSyntaxError as problem:
        raise ChatSyntaxError(
            "the chat template does not parse",
            where=f"line {problem.lineno}",
            found=_one_line(problem),
            hint="take the chat template of the base model",
        ) from problem
    except (
        TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
        ValueError,
    ) as problem:  # fmt: skip
        raise InputError(
            "the chat template refuses a conversation",
            where=conversation.name,
            found=_one_line(problem),
            hint="take the chat template of the base model",
        ) from problem
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            "the chat template writes too much",
            where=conversation.name,
            expected=f"at most {MAX_CHARACTERS:,} characters",
            found=f"{len(text):,}",
            hint="take the chat template of the base model",
        )
    return str(text)


def render_ids(
    tokenizer: Any, conversation: Conversation, *, jinja: str | None = None
) -> Rendering:
    """Returns the prompt and its token ids; see `render_text`.

    Raises:
        InputError: The template refuses the conversation, or fails.
    """
    text = render_text(tokenizer, conversation, jinja=jinja)
    return Rendering(conversation.name, text, token_ids(tokenizer, text))


def token_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Returns the ids of a text in which special tokens stand written out."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def special_texts(tokenizer: Any) -> Mapping[int, str]:
    """Returns the added tokens of a tokenizer, special or not: id → text."""
    return {
        number: str(getattr(token, "content", token))
        for number, token in tokenizer.added_tokens_decoder.items()
    }


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
