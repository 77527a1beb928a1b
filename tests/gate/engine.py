"""A tiny engine to stand behind the gate: a table of distributions, served as vLLM serves them.

What vLLM itself does is seen in tests/serve, with the real one. Here it is about the gate.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

VOCABULARY = 12


class Engine:
    """Answers completions from a table; echoes everything else.

    Args:
        tables: Model → logits of the next token, whatever the prompt is.
    """

    def __init__(self, tables: dict[str, list[float]]) -> None:
        self.tables = tables
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.held = asyncio.Event()
        self.held.set()
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        body = (await receive())["body"]
        payload = json.loads(body) if body else {}
        self.asked.append((scope["path"], payload))
        if scope["path"] == "/metrics":
            await self._send(send, b"vllm:num_requests_running 0.0\n")
        elif "logprobs" in payload:
            await self._send(send, json.dumps(self._completion(payload)).encode())
        else:
            try:
                await self.held.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            await self._stream(send, payload, scope["headers"])

    def _completion(self, payload: dict[str, Any]) -> dict[str, Any]:
        logits = self.tables[payload["model"]]
        total = math.log(math.fsum(map(math.exp, logits)))
        told = {f"token_id:{token}": value - total for token, value in enumerate(logits)}
        best = dict(sorted(told.items(), key=lambda item: -item[1])[: payload["logprobs"]])
        return {"choices": [{"text": "", "logprobs": {"top_logprobs": [best]}}]}

    async def _stream(self, send: Any, payload: Any, headers: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (json.dumps(payload).encode(), json.dumps(dict_of(headers)).encode()):
            await send({"type": "http.response.body", "body": part + b"\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    @staticmethod
    async def _send(send: Any, body: bytes) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def dict_of(headers: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}
