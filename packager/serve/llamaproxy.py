"""An ASGI application that hands requests on to llama.cpp's own servers, model by model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from lorapack_gate.answer import (
    Receive,
    RefusedError,
    Scope,
    Send,
    send_bytes,
    send_json,
    send_refusal,
)

_PASSED = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class Backend:
    """One of llama.cpp's servers.

    Attributes:
        url: Without a path.
        key: That it asks for.
    """

    url: str
    key: str


class LlamaProxy:
    """The application behind the gate, which lets through known models and paths only.

    Args:
        backends: By served name.
    """

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = backends
        # An answer takes as long as it takes; who waits may leave.
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] in _PASSED:
            await self._pass(scope["path"], receive, send)
        else:
            await self._tell(scope["path"], send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._client.aclose()
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

    async def _pass(self, path: str, receive: Receive, send: Send) -> None:
        # The gate has read the whole body, and checked which model it names.
        body = (await receive())["body"]
        backend = self._backends[json.loads(body)["model"]]
        answering = asyncio.create_task(self._answer(backend, path, body, send))
        leaving = asyncio.create_task(_wait_for_leave(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            # llama.cpp stops working on what nobody reads any more.
            answering.cancel()
            leaving.cancel()

    async def _answer(self, backend: Backend, path: str, body: bytes, send: Send) -> None:
        headers = {"authorization": f"Bearer {backend.key}", "content-type": "application/json"}
        async with self._client.stream(
            "POST", backend.url + path, content=body, headers=headers
        ) as response:
            kind = response.headers.get("content-type", "application/json").encode()
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": [(b"content-type", kind)],
                }
            )
            async for part in response.aiter_bytes():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _wait_for_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
