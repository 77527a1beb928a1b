"""Chat templates near one that Ollama knows."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.chat import stock
from packager.chat.stock import NEAR, bound_distance, guard_template

SHIPPED = Path(__file__).parents[2] / "templates" / "ollama" / "stock.json"


def levenshtein(left: str, right: str) -> int:
    """The distance that Ollama measures, row by row."""
    row = list(range(len(right) + 1))
    for number, letter in enumerate(left, 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(right, 1):
            best = min(row[place] + 1, row[place - 1] + 1, diagonal + (letter != other))
            diagonal, row[place] = row[place], best
    return row[-1]


KNOWN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
)


@pytest.fixture
def _know_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tuple(Counter(text) for text in KNOWN)
    monkeypatch.setattr(stock, "_known", lambda: counts)


@pytest.mark.usefixtures("_know_ours")
@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from("ab{}'~ é")), max_size=150))
def test_bound_is_never_above_the_distance(edits: list[tuple[int, str]]) -> None:
    text = KNOWN[0]
    for place, letter in edits:
        cut = place % len(text)
        text = text[:cut] + letter + text[cut + random.Random(place).randrange(2) :]
    assert bound_distance(text) <= min(levenshtein(text, known) for known in KNOWN)


@pytest.mark.usefixtures("_know_ours")
@pytest.mark.parametrize("blanks", ["", "\n", "  ", "\n\n  ", "\t{# c #}\n", "{{- '' }}\n "])
@pytest.mark.parametrize("known", KNOWN)
def test_guarded_template_is_far_and_says_the_same(known: str, blanks: str) -> None:
    near = blanks + known
    assert min(levenshtein(near, text) for text in KNOWN) < NEAR
    guarded = guard_template(near)
    assert min(levenshtein(guarded, text) for text in KNOWN) >= NEAR
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    said = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}
    expected = environment.from_string(near).render(said)
    assert environment.from_string(guarded).render(said) == expected
    assert guarded.endswith(near)
    assert guard_template(guarded) == guarded


def test_no_known_template_has_the_guard() -> None:
    entries = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert len(entries) == 37
    assert not any("~" in entry["characters"] for entry in entries)
    assert all(sum(entry["characters"].values()) > 150 for entry in entries)


def test_template_of_its_own_is_left_alone() -> None:
    own = "".join(f"{{{{ 'ÄÖÜ {number}' }}}}" for number in range(90))
    assert bound_distance(own) >= NEAR
    assert guard_template(own) == own
