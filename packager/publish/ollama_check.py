"""Whether an Ollama is new enough, has made the model that was asked for, and lets it speak. Pure.

Source: ollama v0.33.0-rc2, server/routes.go, GetModelInfo: parameters are lines of a name and a
value in Go's %#v; selectedModelTemplate tells the GGUF's own Jinja where it is preferred to Go's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packager.errors import OllamaError
from packager.publish.ollama_bundle import BundledModel
from packager.publish.ollama_name import ModelName
from packager.publish.store_image import file_type_name

_VERSION = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:[-+].*)?")
_LINE = re.compile(r"(\w+) +(.*)")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_BUILT_BY_HAND = (0, 0, 0)
_GOOD_ENDS = ("stop", "length")
_SHOWN_CHARS = 120


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        question: What it was asked.
        text: Its answer; its thoughts where it came no further.
        done_reason: Why it ended: `stop`, or `length` where it was cut.
    """

    question: str
    text: str
    done_reason: str


def check_version(found: str, model: BundledModel, where: str) -> None:
    """Refuses an Ollama that is older than a model requires.

    Raises:
        OllamaError: It is older.
    """
    wanted, has = _parse_version(model.modelfile.requires), _parse_version(found)
    if wanted is None or has in (None, _BUILT_BY_HAND) or has >= wanted:
        return
    raise OllamaError(
        "this Ollama is too old for the model",
        where=where,
        expected=f"version {model.modelfile.requires} or newer",
        found=f"version {found[:40]}",
        hint="update it: https://ollama.com/download",
    )


def check_shown(name: ModelName, model: BundledModel, shown: Mapping[str, Any]) -> str:
    """Compares what Ollama says of a model with what it was asked to make.

    Returns:
        A line for the user where it will use another of two good templates, or an empty text.

    Raises:
        OllamaError: It has made something else.
    """
    said, own = model.modelfile, model.header.chat_template
    template = shown.get("template")
    if template not in ({said.template, own} if said.template else {own or template}):
        raise _differs(name, "template", said.template or own, template)
    for field, wanted, found in _pairs(model, shown):
        if wanted != found:
            raise _differs(name, field, wanted, found)
    if said.template and template != said.template:
        return f"{name.text}: Ollama prefers the template within the GGUF to TEMPLATE"
    return ""


def parse_shown_parameters(text: str) -> dict[str, Any]:
    """Reads the parameters that Ollama shows; each name has a list of values."""
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        if match := _LINE.fullmatch(line):
            found.setdefault(match[1], []).append(_parse_value(match[2]))
    return found


def check_answer(name: ModelName, question: str, reply: Any) -> Answer:
    """Refuses an answer that says nothing.

    Args:
        name: Of the model.
        question: What it was asked.
        reply: The client's ChatResponse.

    Raises:
        OllamaError: It is empty, or was not ended by the model or by the limit.
    """
    text = str(reply.message.content or reply.message.thinking or "").strip()
    reason = str(reply.done_reason or "")
    if text and reason in _GOOD_ENDS:
        return Answer(question, text, reason)
    raise OllamaError(
        "the model does not answer",
        where=name.text,
        expected=f"an answer to {question!r} that ends with {' or '.join(_GOOD_ENDS)}",
        found=f"{text[:_SHOWN_CHARS]!r}, ended by {reason[:40] or 'nothing'}",
        hint="look into the log of `ollama serve`; check the bundle with lorapack verify",
    )


def _pairs(model: BundledModel, shown: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields field, wanted value and found value of what can be compared exactly."""
    said = model.modelfile
    request = model.request("")
    parameters = parse_shown_parameters(str(shown.get("parameters") or ""))
    for key, value in request.get("parameters", {}).items():
        wanted = value if isinstance(value, list) else [value]
        yield f"parameter {key}", [_plain(item) for item in wanted], parameters.get(key)
    yield "system message", said.system, shown.get("system") or ""
    yield "licence", "\n".join(said.licenses), shown.get("license") or ""
    messages = [(item.get("role"), item.get("content")) for item in shown.get("messages") or []]
    yield "messages", [(item.role, item.content) for item in said.messages], messages
    level = (shown.get("details") or {}).get("quantization_level")
    if file_type_name(model.header) != "unknown":
        yield "quantization", file_type_name(model.header), level


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, bool)) else float(value)


def _parse_value(text: str) -> str | bool | float:
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text[0] == text[-1] == '"':
        return _ESCAPE.sub(_unescape, text[1:-1])
    try:
        return float(text)
    except ValueError:
        return text


def _unescape(match: re.Match[str]) -> str:
    number = match[1] or match[2] or match[3]
    if number:
        return chr(min(int(number, 16), 0x10FFFF))
    return _LETTERS.get(match[4], match[4])


def _parse_version(text: str) -> tuple[int, int, int] | None:
    match = _VERSION.fullmatch(text)
    return (int(match[1]), int(match[2] or 0), int(match[3] or 0)) if match else None


def _differs(name: ModelName, field: str, wanted: Any, found: Any) -> OllamaError:
    return OllamaError(
        f"Ollama has made a model with another {field} than it was asked for",
        where=name.text,
        expected=repr(wanted)[:_SHOWN_CHARS],
        found=repr(found)[:_SHOWN_CHARS],
        hint=f"remove it: ollama rm {name.text}; update Ollama, then run again",
    )
