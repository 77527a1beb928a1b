"""The Go templates, and their golden renderings against Go itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from packager.chat.conversation import CONVERSATIONS, Conversation
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
