"""Training conversations in JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.errors import InputError, LorapackError
from packager.train import Example, parse_examples, read_examples


def line(*messages: tuple[str, str]) -> str:
    return json.dumps(
        {"messages": [{"role": role, "content": text} for role, text in messages]},
        ensure_ascii=False,
    )


def test_reads_every_script_and_skips_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "对话.jsonl"
    chats = (
        (("user", "你好！"), ("assistant", "啊哈\u2028伙计 🏴‍☠️")),
        (("system", "Be brief."), ("user", "Hi"), ("assistant", "Arr!")),
    )
    path.write_text("\n".join([line(*chats[0]), "", line(*chats[1]), ""]), encoding="utf-8")
    assert read_examples(path) == tuple(Example(chat) for chat in chats)


@pytest.mark.parametrize(
    ("text", "expected", "where"),
    [
        ('{"messages": []}', "messages", "line 1"),
        ('{"text": "hello"}', "messages", "line 1"),
        (line(("user", "Hi")), "assistant", "line 1"),
        (line(("robot", "Hi"), ("assistant", "Arr")), "role", "line 1"),
        (line(("user", "a"), ("assistant", "b")) + '\n{"messages": [1]}', "role", "line 2"),
        ("", "at least one line", "x.jsonl"),
    ],
)
def test_says_which_line_is_wrong(text: str, expected: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_examples(text, where="x.jsonl")
    assert expected in caught.value.expected
    assert where in caught.value.where
    assert caught.value.hint


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_text_gives_examples_or_a_known_error(text: str) -> None:
    try:
        examples = parse_examples(text, where="x")
    except LorapackError:
        return
    assert all(example.messages[-1][0] == "assistant" for example in examples)
