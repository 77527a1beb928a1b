"""Putting strangers' words into Markdown, Python and shell text so that they stay words."""

from __future__ import annotations

import json
import re
import shlex
from functools import cache
from typing import Any

from jinja2 import StrictUndefined
from jinja2.loaders import FunctionLoader
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.resource import read_resource

# Control characters, lone surrogates and line separators, and the marks that reorder text on the
# screen (Trojan Source, CVE-2021-42574). Joiners stay: emoji and several scripts need them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
# Source: CommonMark 0.31, section 2.4, and GFM 0.29, sections 4.10, 6.5 and 6.9.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\\": "&#92;", "$": "&#36;"}
_SPECIAL = re.compile(r"([&<>\\$`*\[\]#|~]|(?<![^\W_])_|_(?![^\W_]))")
# What makes a list or an underline where a value opens a list item or a line.
_OPENING = re.compile(r"^(\d{0,9})([-+=.)])(?=[-+=\s]|$)")
_PLAIN_LINK = re.compile(r"\b(https?|ftp|www|mailto|xmpp)(?=[:.])", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")


class Markdown(str):
    """Text that is Markdown already; everything else is escaped when it enters a template."""

    __slots__ = ()


def clean(value: object) -> str:
    """Returns the text on one line, without characters that cannot be seen or reorder others."""
    return " ".join(_UNSEEN.sub(" ", str(value)).split())


def escape_markdown(value: object) -> Markdown:
    """Returns text that shows as it is: no markup, HTML, link, mention or formula comes of it."""
    # Entities, and no escapes, for what starts a formula on the Hub: it looks for those first.
    text = _SPECIAL.sub(lambda mark: _ENTITIES.get(mark[0], f"\\{mark[0]}"), clean(value))
    text = _OPENING.sub(r"\1\\\2", text)
    # GitHub's autolinks see through escapes; a word joiner is the only thing that stops them.
    text = _PLAIN_LINK.sub("\\1\u2060", text).replace("@", "@\u2060")
    return Markdown(text)


def code_span(value: object) -> Markdown:
    """Returns the text as inline code, whatever backticks it holds.

    Source: CommonMark 0.31, section 6.1.
    """
    text = clean(value)
    if not text:
        return Markdown("*empty*")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def python_literal(value: object) -> Markdown:
    """Returns a string literal that stands on one line, in Python as in JSON."""
    return Markdown(_visible_json(str(value)))


def shell_word(value: object) -> Markdown:
    """Returns one word for a POSIX shell, on one line."""
    return Markdown(shlex.quote(clean(value)))


def json_word(value: Any) -> Markdown:
    """Returns a JSON document as one word for a POSIX shell."""
    return Markdown(shlex.quote(_visible_json(value)))


def is_plain_word(value: str) -> bool:
    """Whether the text is one word of ASCII letters, digits, dots, dashes and underscores."""
    return _PLAIN.fullmatch(value) is not None


def count_text(value: int) -> Markdown:
    """Returns an integer with thousands separated: 134,515,008."""
    return Markdown(f"{value:,}")


def size_text(value: int) -> Markdown:
    """Returns a number of bytes in decimal units, three significant digits: 269 MB."""
    size = float(value)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return Markdown(f"{size:.3g} {unit}")
        size /= 1000
    return Markdown(f"{size:,.2f} TB" if size < 999.5 else f"{size:,.0f} TB")


def figure_text(value: float) -> Markdown:
    """Returns a small figure in plain digits where they are short: 0.00123, 4.2e-09, 0."""
    return Markdown(f"{value:.3g}")


def share_text(value: float) -> Markdown:
    """Returns a share between 0 and 1 in per cent, never rounded up to 100 or down to 0."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return Markdown("under 0.01 %")
    if 99.99 < percent < 100:
        return Markdown("over 99.99 %")
    return Markdown(f"{percent:.4g} %")


def spread_text(values: tuple[float, ...]) -> Markdown:
    """Returns one number, or the smallest and the largest: 8, or 4 to 64."""
    low, high = (f"{value:.6g}" for value in (min(values), max(values)))
    return Markdown(low if low == high else f"{low} to {high}")


def ratio_text(value: float) -> Markdown:
    """Returns a figure close to 1, with the digits that tell it from 1: 1.00002."""
    return Markdown(f"{value:.6g}")


def own_text(value: str) -> Markdown:
    """Marks Markdown of our own, written in this package and nowhere else."""
    return Markdown(value)


def _visible_json(value: Any) -> str:
    return _UNSEEN.sub(_escape_run, json.dumps(value, ensure_ascii=False))


def _escape_run(match: re.Match[str]) -> str:
    return "".join(f"\\u{ord(char):04x}" for char in match[0])


def _show(value: object) -> object:
    return value if isinstance(value, Markdown) else escape_markdown(value)


def _load(name: str) -> str:
    return read_resource(f"templates/{name}")


@cache
def card_environment() -> ImmutableSandboxedEnvironment:
    """Returns the template environment, where every value is escaped unless a filter says how."""
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(_load),
        finalize=_show,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(
        code=code_span,
        python=python_literal,
        shell=shell_word,
        json_word=json_word,
        number=count_text,
        size=size_text,
        figure=figure_text,
        share=share_text,
        spread=spread_text,
        ratio=ratio_text,
        own=own_text,
    )
    return environment
