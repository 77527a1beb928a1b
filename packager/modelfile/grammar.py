"""The grammar of Ollama's Modelfile: commands and their quoting, writer and reader side by side.

A value is bare up to the end of its line, or stands in one or three double quotes, and then ends
at the first end of line before which they are closed. There are no escapes: what holds closing
quotes at the end of a line cannot be said, and characters that are not printable are dropped.

Source: ollama v0.33.0, parser/parser.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packager.modelfile.printable import drop_unprintable, find_dropped, is_printable
from packager.modelfile.value import ModelfileError, check_role

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser",
    "parameter", "message", "requires",
)  # fmt: skip

Style = Literal["bare", "line", "text"]

_SPACES = " \t"
_BLANKS = " \t\r\n"
_WORD = re.compile("[A-Za-z]*")
_PARAMETER = re.compile("[A-Za-z0-9_]*")
_LINE_END = re.compile(r"[\r\n]")
_QUOTES = ('"""', '"')
_FORMS: dict[Style, tuple[str, ...]] = {
    "bare": ("", '"', '"""'),
    "line": ('"', "", '"""'),
    "text": ('"""', '"', ""),
}


@dataclass(frozen=True)
class Command:
    """One command of a Modelfile.

    Attributes:
        name: In small letters, one of `COMMANDS`.
        value: Without its quotes.
        label: A parameter's name or a message's role; else empty.
    """

    name: str
    value: str
    label: str = ""


def render_command(command: Command, style: Style) -> str:
    """Returns a command's text, with its line end.

    Args:
        command: What to say.
        style: Which quotes are tried first: none, those of a line, those of a text.

    Raises:
        ModelfileError: The grammar cannot carry the value; the reason is named.
    """
    head = " ".join(filter(None, (command.name.upper(), command.label)))
    text = command.value
    # Nothing at all is said by empty quotes: a bare nothing looks like a mistake.
    forms = _FORMS[style] if text else ('"',)
    for quote in forms:
        body = f"{quote}{text}{quote}"
        if _read_value(f"{body}\n", 0) == (text, len(body)):
            return f"{head} {body}\n"
    raise ModelfileError(
        "a Modelfile cannot carry this text",
        where=head,
        found=_explain(text),
        hint="create the model from create.json, which can: POST /api/create",
    )


def parse_commands(text: str) -> tuple[Command, ...]:
    """Reads the commands of a Modelfile.

    Raises:
        ModelfileError: The text is no Modelfile; the line is named.
    """
    return tuple(_iterate(text.removeprefix("\ufeff")))


def _iterate(text: str) -> Iterator[Command]:
    place = _skip(text, 0)
    while place < len(text):
        start = place
        name, place = _read_name(text, place)
        label = ""
        if name == "parameter":
            label, place = _read_label(text, place, _PARAMETER)
        elif name == "message":
            label, place = _read_label(text, place, _WORD)
            check_role(label)
        value, place = _read_value(text, place)
        if place < 0:
            raise _error(text, start, "a quoted value is not closed")
        yield Command(name, value, label)
        place = _skip(text, place)


def _skip(text: str, place: int) -> int:
    """Returns where the next command starts, past blanks and comments."""
    while place < len(text):
        if text[place] == "#":
            end = _LINE_END.search(text, place)
            place = end.start() if end else len(text)
        elif text[place] in _BLANKS:
            place += 1
        else:
            break
    return place


def _read_name(text: str, place: int) -> tuple[str, int]:
    # Whatever starts a command belongs to its name, unless it is dropped.
    first = text[place] if is_printable(text[place]) else ""
    word = _WORD.match(text, place + 1)
    assert word is not None
    name = (first + word[0]).lower()
    if name not in COMMANDS or not first.isascii():
        raise _error(text, place, "no such command", found=repr(first + word[0])[:60])
    return name, _pass_space(text, word.end(), name)


def _read_label(text: str, place: int, pattern: re.Pattern[str]) -> tuple[str, int]:
    word = pattern.match(text, place)
    assert word is not None
    return word[0], _pass_space(text, word.end(), word[0])


def _pass_space(text: str, place: int, after: str) -> int:
    if text[place : place + 1] in (*_SPACES,):
        return place + 1
    raise _error(text, min(place, len(text) - 1), f"a space is missing after {after[:60]!r}")


def _read_value(text: str, place: int) -> tuple[str, int]:
    """Returns a value and where it ends; a place of -1 where its quotes are never closed."""
    kept: list[str] = []
    quote: str | None = None
    while True:
        match = _LINE_END.search(text, place)
        end = match.start() if match else len(text)
        line = drop_unprintable(text[place:end])
        kept.append(line)
        shown = line.strip(_SPACES)
        if quote is None:
            quote = next((mark for mark in _QUOTES if shown.startswith(mark)), "")
            closed = not quote or (shown.endswith(quote) and len(shown) >= 2 * len(quote))
        else:
            closed = shown.endswith(quote)
        if closed:
            whole = "".join(kept).strip(_BLANKS)
            return whole[len(quote) : len(whole) - len(quote)], end
        if match is None:
            return "", -1
        kept.append(match[0])
        place = end + 1


def _explain(text: str) -> str:
    dropped = find_dropped(text)
    if dropped is not None:
        return f"the character U+{ord(dropped):04X}, which Ollama drops"
    if '"""' in text:
        return 'closing quotes, """, at the end of a line'
    return "quotes or blanks at the end of a line"


def _error(text: str, place: int, what: str, found: str = "") -> ModelfileError:
    line = len(_LINE_END.findall(text, 0, place)) + 1
    return ModelfileError(
        what,
        where=f"Modelfile, line {line}",
        expected=", ".join(COMMANDS).upper() if found else "",
        found=found,
        hint="see Ollama's documentation of the Modelfile",
    )
