"""Strangers' words in Markdown, Python and shell; the oracles are the real readers of each."""

from __future__ import annotations

import ast
import json
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from jinja2.exceptions import SecurityError
from markdown_it import MarkdownIt

from packager.markup import (
    Markdown,
    card_environment,
    clean,
    code_span,
    escape_markdown,
    figure_text,
    json_word,
    python_literal,
    ratio_text,
    share_text,
    shell_word,
    size_text,
    spread_text,
)

MARKS = st.text(
    st.sampled_from("`*_[]()<>&|\\#~$!{}%-+=.:@/'\" \n\t1aé猫\u202e\u200d"), max_size=30
)
WORDS = st.one_of(MARKS, st.text(max_size=30))
READER = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def shown(markdown: str) -> str:
    """What a reader sees of one paragraph; fails where it is more than plain words."""
    [_, inline, _] = READER.parse(markdown)
    assert {token.type for token in inline.children or []} <= {"text", "code_inline"}
    return "".join(token.content for token in inline.children or []).replace("\u2060", "")


@given(WORDS)
@example("<img src=x onerror=alert(1)>")
@example("[a](javascript:alert(1)) ![b](http://c) **d** _e_ ~~f~~ `g` <!-- h -->")
@example("&lt;script&gt; &copy; \\* $$x$$ {{ 7*7 }} {% raw %}")
@example("a\n\n# Heading\n---\n| t |\n| - |")
def test_prose_shows_as_it_is(text: str) -> None:
    assert shown(f"x {escape_markdown(text)} y").split() == f"x {clean(text)} y".split()


@given(WORDS)
@example("- a")
@example("1. a")
@example("+")
@example("# a")
@example("> a")
@example("===")
def test_a_list_item_holds_one_paragraph(text: str) -> None:
    tokens = READER.parse(f"- {escape_markdown(text)}x")
    assert [token.type for token in tokens] == [
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close",
        "list_item_close", "bullet_list_close",
    ]  # fmt: skip


@given(WORDS)
@example("a | b \\| c")
def test_a_table_cell_stays_one_cell(text: str) -> None:
    tokens = READER.parse(f"| a | b |\n| - | - |\n| {escape_markdown(text)} | end |\n")
    cells = [t.content for t, o in zip(tokens[1:], tokens, strict=False) if o.type == "td_open"]
    assert len(cells) == 2
    assert cells[1] == "end"


@given(WORDS)
@example("a ``` b ` c")
@example("`")
def test_code_shows_as_it_is(text: str) -> None:
    if clean(text):
        assert shown(f"x {code_span(text)} y") == f"x {clean(text)} y"
    else:
        assert code_span(text) == "*empty*"


@pytest.mark.parametrize("link", ["https://evil.example", "www.evil.example", "a@evil.example"])
def test_bare_addresses_do_not_become_links(link: str) -> None:
    # Readers of GitHub's flavour link whatever looks like an address, also across escapes.
    assert link not in escape_markdown(link)
    assert escape_markdown(link).replace("\u2060", "") == link


def test_formula_marks_of_the_hub_do_not_survive() -> None:
    escaped = escape_markdown("$$x$$ \\\\(y\\\\) \\(z\\)")
    assert "$" not in escaped
    assert "\\(" not in escaped


def test_ordinary_names_stay_readable() -> None:
    for name in (
        "SmolLM2-135M-Instruct",
        "model_v1.2 (beta)",
        "Llama-海盗-🏴‍☠️",
        "0.1.0",
        "C++",
        "a=b",
    ):
        assert escape_markdown(name) == name


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example('"""\n```\n# rm')
@example("\u202e\u2028\x85\x7f")
def test_python_literals_are_the_text_on_one_line(text: str) -> None:
    literal = python_literal(text)
    assert ast.literal_eval(literal) == text == json.loads(literal)
    assert len(literal.splitlines()) == 1
    assert not set(literal) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


WORDS_OF_A_SHELL = [
    "$(id)",
    "`id`",
    "a'b",
    'a"b',
    "; id",
    "-x",
    "~",
    "*",
    "",
    "猫 🏴‍☠️",
    "a\nb",
    "\\",
]


def test_shell_words_are_single_words() -> None:
    words = [shell_word(text) for text in WORDS_OF_A_SHELL]
    assert all(len(word.splitlines()) <= 1 for word in words)
    script = "printf '%s\\0' " + " ".join(words)
    answer = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    assert answer.stdout.decode().split("\0")[:-1] == [clean(text) for text in WORDS_OF_A_SHELL]


def test_json_words_reach_the_program_whole() -> None:
    value = {"prompt": "two  spaces\nand 'quotes' \u202e $(id)", "model": "猫"}
    word = json_word(value)
    assert len(word.splitlines()) == 1
    answer = subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert json.loads(answer.stdout) == value


def test_templates_escape_by_default() -> None:
    environment = card_environment()
    template = environment.from_string("{{ a }} {{ b }} {{ c | own }} {{ d | code }}")
    rendered = template.render(a="*x*", b=Markdown("*y*"), c="*z*", d="{{ 7 * 7 }}")
    assert rendered == "\\*x\\* *y* *z* `{{ 7 * 7 }}`"


def test_templates_are_a_sandbox() -> None:
    environment = card_environment()
    with pytest.raises(UndefinedError):
        environment.from_string("{{ missing }}").render()
    with pytest.raises(SecurityError):
        environment.from_string("{{ ().__class__.__base__.__subclasses__() }}").render()
    with pytest.raises(SecurityError):
        environment.from_string("{{ items.append(1) }}").render(items=[])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (9_790_000, "9.79 MB"),
        (999_700_000, "1 GB"),
        (269_060_552, "269 MB"),
        (16_060_522_240, "16.1 GB"),
        (1_400_000_000_000, "1.40 TB"),
    ],
)
def test_sizes(value: int, expected: str) -> None:
    assert size_text(value) == expected


def test_figures() -> None:
    assert [figure_text(x) for x in (0.0, 0.000213, 4.2e-9, 1.32)] == [
        "0", "0.000213", "4.2e-09", "1.32",
    ]  # fmt: skip
    assert [share_text(x) for x in (0.0, 1e-6, 0.000161, 0.9974, 0.999999, 1.0)] == [
        "0 %", "under 0.01 %", "0.0161 %", "99.74 %", "over 99.99 %", "100 %",
    ]  # fmt: skip
    assert [spread_text(x) for x in ((8,), (4, 8, 64), (0.4, 2.0), (16.0,))] == [
        "8", "4 to 64", "0.4 to 2", "16",
    ]  # fmt: skip
    assert [ratio_text(x) for x in (1.0, 1.00002, 12.5)] == ["1", "1.00002", "12.5"]
