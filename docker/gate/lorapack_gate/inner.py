"""Requests of the gate's own to the server behind it, in process: no socket, no key."""

from __future__ import annotations

import asyncio
from typing import Any

from lorapack_gate.answer import App, Message, Scope


async def ask_inside(
    app: App, host: Any, method: str, path: str, body: bytes = b""
) -> tuple[int, bytes]:
    """Sends one request through an ASGI application.

    Args:
        app: What is behind the gate.
        host: The application that it belongs to, as `scope["app"]` names it.
        method: Of HTTP.
        path: Without a query.
        body: JSON.

    Returns:
        The status and the whole body of the response.
    """
    waiting = [body]
    status, parts = 500, []

    async def receive() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        # A client that neither sends more nor leaves; cancelled with the request.
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    await app(_scope(host, method, path, len(body)), receive, send)
    return status, b"".join(parts)


def _scope(host: Any, method: str, path: str, length: int) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
        "app": host,
    }
