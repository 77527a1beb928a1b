"""The Go templates, and their golden renderings against Go itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from packager.chat.conversation import CONVERSATIONS, Call, Conversation, Turn
from packager.chat.family import FAMILIES, Family, fill_template, quote_go, read_template
from tests.chat.golang import render_go

FOLDER = Path(__file__).parents[2] / "templates" / "ollama"


def concerned(family: Family) -> list[Conversation]:
    return [
        conversation
        for conversation in CONVERSATIONS
        if set(conversation.needs) <= set(family.capabilities)
    ]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_goldens_are_what_go_makes(family: Family, request: pytest.FixtureRequest) -> None:
    made = []
    for constants in family.variants:
        template = fill_template(read_template(family), constants)
        conversations = concerned(family)
        texts = render_go([(template, conversation) for conversation in conversations])
        names = [conversation.name for conversation in conversations]
        made.append({"constants": constants, "renderings": dict(zip(names, texts, strict=True))})
    path = FOLDER / f"{family.name}.json"
    if request.config.getoption("--update-goldens"):
        text = json.dumps(made, ensure_ascii=False, indent=1)
        path.write_text(f"{text}\n", encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == made


def test_every_file_belongs_to_a_family() -> None:
    parts = {part for family in FAMILIES for part in family.parts}
    names = {family.name for family in FAMILIES}
    assert {path.stem for path in FOLDER.glob("*.gotmpl")} == names | parts
    assert {path.stem for path in FOLDER.glob("*.json")} == names | {"stock"}


def test_strings_for_go_are_read_by_go() -> None:
    texts = ['a "b" \\ \n\t %s {{ }}', "🙂 👩\u200d👧 é\u00a0\u2028", "\x00\x1b"]
    jobs = [(f"{{{{ {quote_go(text)} }}}}", CONVERSATIONS[0]) for text in texts]
    assert all(job[0].isascii() for job in jobs)
    assert render_go(jobs) == texts


def test_ollama_finds_how_calls_and_thoughts_are_written() -> None:
    """The first text under `if .ToolCalls` is what Ollama looks for in an answer, up to a brace.

    It gives up at any action before that; around `.Thinking`, it takes the texts of its block.

    Source: ollama v0.33.0, tools/template.go (parseTag) and thinking/template.go (InferTags).
    """
    tags = {}
    for family in FAMILIES:
        template = read_template(family)
        block = re.search(r"if \.ToolCalls }}(?:{{ range [^}]*}})?([^{]*)", template)
        assert (block is not None) == ("tools" in family.capabilities)
        if block is not None:
            tags[family.name] = block[1].strip()
            assert '(eq .Role "tool")' in template or 'eq .Role "tool" }}' in template
        assert (".Thinking }}\n</think>" in template) == ("thinking" in family.capabilities)
    assert tags == {
        "qwen2.5": "<tool_call>",
        "qwen3": "<tool_call>",
        "mistral-tools": "[TOOL_CALLS]",
    }


def test_arguments_are_written_as_python_writes_json() -> None:
    arguments: dict[str, Any] = {
        "a": None,
        "b": {"c": [None, True, {"d": "<&>\u2028\x7f\x01\b\f"}], "e": {}, "f": []},
        "g": [0, -1, 2.5, 123456789],
        "h": 'Zürich 🙂 "\\"',
    }
    call = Call("callx0001", "f", arguments)
    turns = (Turn("user", "?"), Turn("assistant", calls=(call,)), Turn("tool", "ok", call=call))
    family = next(family for family in FAMILIES if family.name == "qwen2.5")
    template = fill_template(read_template(family), family.variants[0])
    (text,) = render_go([(template, Conversation("odd", turns))])
    assert json.dumps(arguments, ensure_ascii=False) in text
