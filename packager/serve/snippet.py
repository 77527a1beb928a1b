"""Lines to copy: how each served model is asked, by `curl` and by OpenAI's client."""

from __future__ import annotations

import json
import shlex

from packager.serve.request import Endpoint

_QUESTION = "What is the capital of Italy?"
_START = "The capital of Italy is"


def render_snippets(endpoint: Endpoint) -> str:
    """Returns the text that is shown once a server is ready."""
    lines = [f"endpoint  {endpoint.url}", f"models    {', '.join(endpoint.models)}"]
    if endpoint.key_file is not None:
        lines.append(f"key       in {endpoint.key_file}")
        lines += ["", f"export OPENAI_API_KEY=$(head -n 1 {shlex.quote(str(endpoint.key_file))})"]
    for model in endpoint.models:
        lines += ["", f"# {model}", *_curl(endpoint, model), "", *_openai(endpoint, model)]
    return "\n".join(lines)


def curl_command(endpoint: Endpoint, model: str) -> str:
    """Returns one `curl` command, for a shell in which OPENAI_API_KEY is set."""
    return "\n".join(_curl(endpoint, model))


def openai_script(endpoint: Endpoint, model: str) -> str:
    """Returns a Python script with OpenAI's client, which reads OPENAI_API_KEY itself."""
    return "\n".join(_openai(endpoint, model))


def _curl(endpoint: Endpoint, model: str) -> list[str]:
    chats = model in endpoint.chats
    request = {"model": model, **_asked(chats=chats)}
    path = "/chat/completions" if chats else "/completions"
    key = ['  -H "Authorization: Bearer $OPENAI_API_KEY" \\'] if endpoint.key_file else []
    return [
        f"curl {shlex.quote(endpoint.url + path)} \\",
        *key,
        "  -H 'Content-Type: application/json' \\",
        f"  -d {shlex.quote(json.dumps(request, ensure_ascii=False))}",
    ]


def _openai(endpoint: Endpoint, model: str) -> list[str]:
    chats = model in endpoint.chats
    key = "" if endpoint.key_file else ', api_key="none"'
    arguments = ", ".join(f"{name}={value!r}" for name, value in _asked(chats=chats).items())
    call = "client.chat.completions.create" if chats else "client.completions.create"
    answer = "answer.choices[0].message.content" if chats else "answer.choices[0].text"
    return [
        "from openai import OpenAI",
        f"client = OpenAI(base_url={endpoint.url!r}{key})",
        f"answer = {call}(model={model!r}, {arguments})",
        f"print({answer})",
    ]


def _asked(*, chats: bool) -> dict[str, object]:
    if chats:
        return {"messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 64}
    return {"prompt": _START, "max_tokens": 64}
