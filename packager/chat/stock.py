"""The trap of stock templates: what Ollama does with a chat template that resembles a known one.

Where a Modelfile has no TEMPLATE, `ollama create` compares the GGUF's chat template with a list of
well-known ones, and puts a stock Go template in the place of one that is fewer than 100 edits away.
What makes the difference, such as another default system message, is then lost.

Source: ollama v0.33.0, template/template.go, `Named` (Levenshtein distance over characters).
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

from packager.resource import read_resource

NEAR = 100
"""A template that is fewer edits away is replaced."""

_GUARD = "~"
_COPIES = 128


def guard_template(jinja: str) -> str:
    """Returns a chat template that says the same and is not near any that Ollama knows.

    In front of one that may be near stands a comment of a character that no known template has:
    every copy of it is an edit. Jinja and llama.cpp drop the comment, and with it the end of its
    line where one is needed so that leading blanks stay what they are.
    """
    if bound_distance(jinja) >= NEAR:
        return jinja
    line_end = "\n" if jinja[:1].isspace() else ""
    return f"{{# {_GUARD * _COPIES} #}}{line_end}{jinja}"


def bound_distance(jinja: str) -> int:
    """Returns a number of edits that at least lie between a template and every known one.

    An edit changes the counts of characters by one on either side at most, so the distance is no
    less than the larger of what one text has too much and what it lacks.
    """
    counts = Counter(jinja)
    return min(max((counts - known).total(), (known - counts).total()) for known in _known())


@cache
def _known() -> tuple[Counter[str], ...]:
    """Character counts of the templates that Ollama knows: facts, not their texts."""
    entries = json.loads(read_resource("templates/ollama/stock.json"))
    return tuple(Counter(entry["characters"]) for entry in entries)
