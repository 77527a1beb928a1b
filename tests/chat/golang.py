"""Ollama's Go templates through Go's own text/template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from packager.chat.conversation import Conversation, ollama_request
from tests.golang import run_go

_SOURCE = Path(__file__).with_name("render.go")


def render_go(jobs: Sequence[tuple[str, Conversation]]) -> list[str]:
    """Returns what Go makes of each template and conversation."""
    given = [
        {"template": template, "request": ollama_request(conversation)}
        for template, conversation in jobs
    ]
    results = json.loads(run_go(_SOURCE, json.dumps(given).encode()))
    errors = [result["error"] for result in results if "error" in result]
    assert not errors, errors[0]
    return [result["text"] for result in results]
