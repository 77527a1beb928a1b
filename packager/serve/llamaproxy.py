"""An ASGI application that hands requests on to llama.cpp's own servers, model by model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

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
from lorapack_gate.exchange import ExchangeError
from lorapack_gate.forward import forward

_PASSED = ("/v1/chat/completions", "/v1/completions")


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
        backend = self._backends[json.loads(body)["model"]]
        headers = [
            (b"authorization", f"Bearer {backend.key}".encode()),
            (b"content-type", b"application/json"),
        ]
        try:
            # llama.cpp stops working on what nobody reads any more.
            await forward(backend.address, {**scope, "headers": headers}, body, receive, send)
        except ExchangeError as problem:
            raise RefusedError(
                503,
                f"llama.cpp does not answer: {problem}",
                kind="service_unavailable_error",
                code="engine_unreachable",
            ) from problem
