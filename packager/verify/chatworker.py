"""The process in which llama.cpp's server renders chats: `python -m packager.verify.chatworker`.

It reads a request from standard input as JSON, {"model", "threads", "conversations"}, each
conversation being the body of a chat request, and writes one document of JSON to standard output:
{"chats": [{"ids"} or {"refused"}, ...]} or {"error"}. Rendering and tokenising are those of
`/v1/chat/completions`, which is what Ollama asks for: `/apply-template` and `/tokenize` share its
code. The server listens on the loopback interface, at a port that the system chooses, with a key
that nobody else knows.

Source: llama.cpp 0c1e57098, tools/server/server-context.cpp, post_apply_template, post_tokenize,
tokenize_input_prompts (special tokens are added and parsed).
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

_SECONDS = 60
_MAX_BYTES = 64 << 20
_CONTEXT_TOKENS = 256


class _Server:
    """llama.cpp's server around one model."""

    def __init__(self, model: str, threads: int) -> None:
        from xllamacpp import CommonParams, Server

        self._key = secrets.token_hex(16)
        params = CommonParams()
        params.model.path = model
        params.port = 0
        params.api_keys = [self._key]
        params.n_ctx = _CONTEXT_TOKENS
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = threads
        params.warmup = False
        params.fit_params = False
        params.use_jinja = True
        params.verbosity = -1
        self._server = Server(params)
        self._address = urlsplit(self._server.listening_address).netloc

    def render(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns the token ids of a chat, or why the template refuses it."""
        status, answer = self._post("/apply-template", body)
        if status != 200 or not isinstance(answer.get("prompt"), str):
            return {"refused": str(answer.get("error", answer))[:400]}
        content = {"content": answer["prompt"], "add_special": True, "parse_special": True}
        status, answer = self._post("/tokenize", content)
        if status != 200:
            raise HTTPException(str(answer)[:400])
        return {"ids": answer["tokens"]}

    def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        connection = HTTPConnection(self._address, timeout=_SECONDS)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read(_MAX_BYTES))
        finally:
            connection.close()
        return response.status, answer if isinstance(answer, dict) else {}


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request."""
    try:
        server = _Server(request["model"], request["threads"])
    except (ImportError, AttributeError, RuntimeError, ValueError) as problem:
        return {"error": f"llama.cpp's server does not start: {problem}"[:400]}
    try:
        return {"chats": [server.render(body) for body in request["conversations"]]}
    except (HTTPException, OSError, ValueError) as problem:
        return {"error": f"llama.cpp's server does not answer: {problem!r}"[:400]}


def main() -> None:
    """Serves the request on standard input."""
    # llama.cpp prints where it likes; the result has a descriptor of its own.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(json.dumps(serve(json.load(sys.stdin))).encode())


if __name__ == "__main__":
    main()
    # Without C++'s good-byes, in which the server may hang.
    os._exit(0)
