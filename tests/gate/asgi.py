"""Requests to an ASGI application in this process, byte for byte as a server would hand them on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

KEY = "k3y-of-the-tests-0123456789"
OTHER_KEY = "another-k3y-of-the-tests-01"
METRICS_KEY = "k3y-for-prometheus-only-987"


@dataclass
class Response:
    """What came back: status, headers, and the parts of the body as they were sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's form, whose other fields are there too."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return str(error["code"])


def bearer(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(
    app: Any,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    parts: Sequence[bytes] = (b"",),
    peer: str = "127.0.0.1",
    leaves: asyncio.Event | None = None,
) -> Response:
    """Sends one request.

    Args:
        app: The application.
        path: Decoded.
        method: Of HTTP.
        headers: Lower-case names.
        parts: Of the body.
        peer: The client's address.
        leaves: Set when the client leaves; by default it stays.
    """
    waiting = list(parts)
    response = Response()
    stays = leaves or asyncio.Event()

    async def receive() -> dict[str, Any]:
        if waiting:
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}
        await stays.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
            pairs: Iterable[tuple[bytes, bytes]] = message["headers"]
            response.headers = {name.decode(): value.decode() for name, value in pairs}
        else:
            response.parts.append(message["body"])

    given = {"host": "localhost:8000", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": (peer, 5000),
        "server": ("127.0.0.1", 8000),
        "app": None,
    }
    await app(scope, receive, send)
    return response


async def post(app: Any, path: str, payload: Any, **options: Any) -> Response:
    """Sends JSON with the right key."""
    headers = {"content-type": "application/json", **bearer(), **options.pop("headers", {})}
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return await ask(app, path, method="POST", headers=headers, parts=[body], **options)
