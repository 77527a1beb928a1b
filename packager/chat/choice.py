"""What an Ollama model says about its chat: a Go template where one is proved, else its Jinja."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from packager.chat.capability import find_capabilities
from packager.chat.conversation import CONVERSATIONS, Capability
from packager.chat.family import fill_template, fill_text, quote_go, read_template
from packager.chat.parity import Match, find_match
from packager.chat.rendering import (
    ChatSyntaxError,
    Rendering,
    chat_templates,
    render_ids,
)
from packager.chat.stock import guard_template
from packager.chat.stop import find_stops
from packager.errors import InputError

JINJA_VERSION = "0.30.0"
"""The first Ollama that runs a GGUF's own chat template."""


@dataclass(frozen=True)
class ChatChoice:
    """How a model's chat reaches Ollama.

    Attributes:
        family: Of the Go template, or empty where none says the same as the model's own.
        go_template: For TEMPLATE, or empty.
        stops: Texts that end a turn.
        end_ids: Ids of those stops that are one token. llama.cpp has to know them as ends.
        requires: The least version of Ollama, or empty. A Go template needs none: what ours count
            with (range over an integer, Go 1.24) is in Ollama since v0.5.13 of February 2025, and
            versions before December 2025 do not know the word REQUIRES.
        jinja: For the GGUF's `tokenizer.chat_template`, or empty.
        named: Further chat templates, name and text in turn.
        guarded: Whether `jinja` bears a comment that keeps Ollama from replacing it.
        adds_bos: What the GGUF's `tokenizer.ggml.add_bos_token` has to be, so that a conversation
            begins with as many of that token as in training.
        capabilities: Beside plain chat.
        checked: Names of the conversations that the model's template takes; on all of them the Go
            template, where there is one, gives the same token ids.
        refused: Names of those that it refuses.
    """

    family: str
    go_template: str
    stops: tuple[str, ...]
    end_ids: tuple[int, ...]
    requires: str
    jinja: str
    named: tuple[str, ...]
    guarded: bool
    adds_bos: bool
    capabilities: tuple[Capability, ...]
    checked: tuple[str, ...]
    refused: tuple[str, ...]


def choose(tokenizer: Any, end_ids: Iterable[int], *, adds_bos: bool | None = None) -> ChatChoice:
    """Chooses on a tokenizer that is loaded; see `choose_chat`, which bounds time and memory.

    Args:
        tokenizer: Of transformers.
        end_ids: `eos_token_id` of the generation configuration.
        adds_bos: What the GGUF would say; by default what the tokenizer does with plain text.

    Raises:
        InputError: The chat template does not parse, or takes no conversation at all.
    """
    jinja, named = chat_templates(tokenizer)
    if adds_bos is None:
        adds_bos = _adds_bos(tokenizer)
    stops, end_tokens = find_stops(tokenizer, end_ids) if not jinja else ((), ())
    choice = ChatChoice(
        family="",
        go_template="",
        stops=stops,
        end_ids=end_tokens,
        requires="",
        jinja="",
        named=tuple(text for pair in sorted(named.items()) for text in pair),
        guarded=False,
        adds_bos=adds_bos,
        capabilities=(),
        checked=(),
        refused=(),
    )
    return _choose_for(tokenizer, jinja, list(end_ids), choice) if jinja else choice


def render_all(tokenizer: Any) -> tuple[tuple[Rendering, ...], tuple[str, ...]]:
    """Returns the fixed conversations that concern a template, and the names that it refuses.

    Raises:
        InputError: The template does not parse, or takes none of them.
    """
    jinja, _ = chat_templates(tokenizer)
    capabilities = find_capabilities(jinja)
    done: list[Rendering] = []
    refusals: dict[str, InputError] = {}
    for conversation in CONVERSATIONS:
        if set(conversation.needs) <= set(capabilities):
            try:
                done.append(render_ids(tokenizer, conversation))
            except ChatSyntaxError:
                raise
            except InputError as problem:
                refusals[conversation.name] = problem
    if not done:
        first = next(iter(refusals.values()))
        raise InputError(
            "the chat template takes no conversation at all",
            where=first.where,
            found=first.found,
            hint="take the chat template of the base model",
        ) from first
    return tuple(done), tuple(refusals)


def _choose_for(tokenizer: Any, jinja: str, end_ids: list[int], choice: ChatChoice) -> ChatChoice:
    renderings, refused = render_all(tokenizer)
    stops, end_tokens = find_stops(tokenizer, end_ids)
    bos = getattr(tokenizer, "bos_token", None) or ""
    begins = bool(bos) and all(rendering.text.startswith(bos) for rendering in renderings)
    choice = replace(
        choice,
        stops=stops,
        end_ids=end_tokens,
        jinja=jinja,
        # Where the template does not write the token, llama.cpp must not either.
        adds_bos=choice.adds_bos and begins,
        capabilities=find_capabilities(jinja),
        checked=tuple(rendering.conversation for rendering in renderings),
        refused=refused,
    )
    # Without `bos` in front, a template may still begin with it: ChatML's first words are a token.
    leads = [bos] if choice.adds_bos else [bos, ""] if begins else [""]
    match = find_match(tokenizer, jinja, renderings, leads)
    return _guard(tokenizer, choice, renderings) if match is None else _apply(choice, match)


def _apply(choice: ChatChoice, match: Match) -> ChatChoice:
    written = "" if choice.adds_bos or not match.lead else f"{{{{ {quote_go(match.lead)} }}}}"
    family = match.variant.family
    own_stops = (fill_text(stop, match.constants) for stop in family.stops)
    return replace(
        choice,
        family=family.name,
        go_template=written + fill_template(read_template(family), match.constants),
        stops=tuple(dict.fromkeys((*choice.stops, *own_stops))),
    )


def _guard(tokenizer: Any, choice: ChatChoice, renderings: tuple[Rendering, ...]) -> ChatChoice:
    guarded = guard_template(choice.jinja)
    _check_guard(tokenizer, guarded, renderings)
    return replace(choice, jinja=guarded, guarded=guarded != choice.jinja, requires=JINJA_VERSION)


def _adds_bos(tokenizer: Any) -> bool:
    number = getattr(tokenizer, "bos_token_id", None)
    return number is not None and tokenizer("a")["input_ids"][:1] == [number]


def _check_guard(tokenizer: Any, guarded: str, renderings: tuple[Rendering, ...]) -> None:
    by_name = {conversation.name: conversation for conversation in CONVERSATIONS}
    for rendering in renderings:
        again = render_ids(tokenizer, by_name[rendering.conversation], jinja=guarded)
        if again.ids != rendering.ids:
            raise InputError(
                "the chat template changes with a comment in front of it",
                where=rendering.conversation,
                hint="take the chat template of the base model",
            )
