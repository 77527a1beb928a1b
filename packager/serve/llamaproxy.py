"""An ASGI application that hands requests on to llama.cpp's own servers, model by model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorapack_gate.address import Address
from lorapack_gate.answer import (
    Receive,
    RefusedError,
    Scope,
    Send,
    send_bytes,
    send_json,
    send_refusal,
)
from lorapack_gate.exchange import ExchangeError, exchange
from lorapack_gate.forward import forward

_PASSED = ("/v1/chat/completions", "/v1/completions")
_TOLD = 100
"""Log-probabilities that the probe is told of each answer."""


@dataclass(frozen=True)
class Backend:
    """One of llama.cpp's servers.

    Attributes:
        address: Where it listens.
        key: That it asks for.
    """

    address: Address
    key: str


class LlamaProxy:
    """The application behind the gate, which lets through known models and paths only.

    Args:
        backends: By served name.
    """

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = backends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] in _PASSED:
            await self._pass(scope, receive, send)
        else:
            await self._tell(scope["path"], send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _tell(self, path: str, send: Send) -> None:
        documents = {
            "/health": {"status": "ok"},
            "/version": {"engine": "llama.cpp"},
            "/v1/models": {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "created": 0, "owned_by": "lorapack"}
                    for name in self._backends
                ],
            },
        }
        if path == "/metrics":
            # The gate adds its own.
            await send_bytes(send, 200, b"", ((b"content-type", b"text/plain"),))
        elif path in documents:
            await send_json(send, 200, documents[path])
        else:
            await send_refusal(
                send,
                RefusedError(404, "llama.cpp's endpoint has no such path", code="unknown_path"),
            )

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The gate has read the whole body, and checked which model it names.
        body = (await receive())["body"]
        payload = json.loads(body)
        backend = self._backends[payload["model"]]
        headers = [
            (b"authorization", f"Bearer {backend.key}".encode()),
            (b"content-type", b"application/json"),
        ]
        try:
            if scope["path"] == "/v1/completions" and "logprob_token_ids" in payload:
                await send_json(send, 200, await _next_token(backend, headers, payload))
                return
            # llama.cpp stops working on what nobody reads any more.
            await forward(backend.address, {**scope, "headers": headers}, body, receive, send)
        except ExchangeError as problem:
            raise RefusedError(
                503,
                f"llama.cpp does not answer: {problem}",
                kind="service_unavailable_error",
                code="engine_unreachable",
            ) from problem


async def _next_token(
    backend: Backend, headers: list[tuple[bytes, bytes]], payload: dict[str, Any]
) -> dict[str, Any]:
    """Answers what the gate's probe asks, as vLLM would.

    Source: llama.cpp 0c1e57098, tools/server/README.md, POST /completion: `n_probs` tokens with
    their log-probabilities before sampling.
    """
    prompt = payload.get("prompt")
    if not isinstance(prompt, list) or not all(type(token) is int for token in prompt):
        raise RefusedError(
            400,
            "logprob_token_ids takes a prompt of token ids here",
            code="invalid_value",
            param="prompt",
        )
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": _TOLD, "temperature": 0}
    body = json.dumps(asked).encode()
    async with exchange(backend.address, "POST", b"/completion", headers, body) as response:
        answer = json.loads(b"".join([part async for part in response.parts]))
    if response.status != 200:
        raise ExchangeError(f"status {response.status}: {str(answer)[:200]}")
    told = answer["completion_probabilities"][0]["top_logprobs"]
    best = {f"token_id:{item['id']}": item["logprob"] for item in told}
    return {"choices": [{"text": "", "logprobs": {"top_logprobs": [best]}}]}
