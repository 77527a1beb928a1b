"""The YAML block of a card."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from hypothesis import example, given
from hypothesis import strategies as st

from packager.errors import InputError
from packager.frontmatter import (
    MAX_FRONT_MATTER_CHARS,
    parse_front_matter,
    render_front_matter,
    split_front_matter,
    text_value,
    text_values,
)

# Lone surrogates cannot stand in a UTF-8 file.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.one_of(TEXT, st.lists(TEXT, max_size=4))
KEYS = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)
METADATA = st.dictionaries(KEYS, VALUES, min_size=1, max_size=6)


@given(METADATA, TEXT)
@example({"a": "x\n---\ny", "b": ["no", "3.10", "null", "&a", "*a", "0x1F", "1e3", ""]}, "body")
@example({"a": "\u2028\x85\x00🏴‍☠️ 海盗 \r\n"}, "---\n")
def test_what_is_written_is_read_back(metadata: dict[str, str | list[str]], body: str) -> None:
    card = f"{render_front_matter(metadata)}\n{body}"
    assert parse_front_matter(card, where="card") == metadata
    assert split_front_matter(card)[1] == f"\n{body}"


@given(METADATA)
def test_the_hub_client_reads_the_same(metadata: dict[str, str | list[str]]) -> None:
    match = REGEX_YAML_BLOCK.search(render_front_matter(metadata))
    assert match is not None
    assert yaml.safe_load(match[2]) == metadata


def test_a_whole_card_of_the_hub_client_keeps_its_words() -> None:
    card = ModelCard(render_front_matter({"language": ["no", "en"], "license": "mit"}) + "\ntext\n")
    assert card.data.to_dict() == {"language": ["no", "en"], "license": "mit"}
    assert card.text == "\ntext\n"


@given(st.text(st.sampled_from("-\r\n \tab:"), max_size=40))
@example("---\n---\n")
@example("---\na: b\n---")
@example(" \n---\r\na: b\r\n---  \r\nbody")
def test_the_block_ends_where_the_hub_sees_its_end(text: str) -> None:
    match = REGEX_YAML_BLOCK.search(text)
    expected = (match[2], text[match.end() :]) if match else ("", text)
    assert split_front_matter(text) == expected


def test_a_byte_order_mark_does_not_hide_the_block() -> None:
    assert parse_front_matter("\ufeff---\nlicense: mit\n---\n", where="card") == {"license": "mit"}


@pytest.mark.parametrize("text", ["", "# Only a title", "---\nno end", "---\n# remark\n---\n"])
def test_no_block_is_an_empty_mapping(text: str) -> None:
    assert parse_front_matter(text, where="card") == {}


def test_scalars_stay_what_stands_in_the_file() -> None:
    text = "---\nlanguage: no\nversion: 3.10\ndate: 2024-01-01\nflag: yes\nodd: !!int 5\n---\n"
    assert parse_front_matter(text, where="card") == {
        "language": "no", "version": "3.10", "date": "2024-01-01", "flag": "yes", "odd": "5",
    }  # fmt: skip


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (_bomb(), "aliases"),
        ("a: &a {b: c}\n<<: *a", "aliases"),
        ("a: " + "[" * 40 + "]" * 40, "deeper than 32"),
        ("a: " + "{b: " * 5000, "deeper than 32"),
        ("license: mit\nlicense: llama3.2", "twice"),
        ("a: {b: 1, b: 2}", "twice"),
        ("a: 'never closed", "found unexpected end"),
        ("? {a: b}\n: c", "unhashable"),
        ("a: \x07", "special characters are not allowed"),
        ("- a\n- b", "list"),
        ("just words", "str"),
        ("x" * (MAX_FRONT_MATTER_CHARS + 1), f"{MAX_FRONT_MATTER_CHARS + 1} characters"),
    ],
)
def test_hostile_blocks_are_named_errors(block: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_front_matter(f"---\n{block}\n---\n", where="their README.md")
    assert found in caught.value.found
    assert caught.value.where == "their README.md"


def test_tags_of_python_objects_build_nothing() -> None:
    text = "---\na: !!python/object/apply:os.system [echo]\n---\n"
    assert parse_front_matter(text, where="card") == {"a": ["echo"]}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_any_text_parses_or_is_an_input_error(block: str) -> None:
    try:
        value = parse_front_matter(f"---\n{block}\n---\n", where="card")
    except InputError:
        return
    assert isinstance(value, dict)


def test_text_values() -> None:
    metadata = {"one": " a ", "many": ["b", "", "b", ["x"], {"y": "z"}, " c"], "null": "~", "e": ""}
    assert text_value(metadata, "one") == "a"
    assert text_values(metadata, "one") == ("a",)
    assert text_values(metadata, "many") == ("b", "c")
    for key in ("many", "null", "e", "missing"):
        assert text_value(metadata, key) is None
    assert text_values(metadata, "missing") == text_values(metadata, "e") == ()
