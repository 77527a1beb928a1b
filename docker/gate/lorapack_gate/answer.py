"""Answers that the gate gives itself, in the form that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]


class RefusedError(Exception):
    """A request that goes no further.

    Args:
        status: Of HTTP.
        message: For the person who reads the client's error.
        kind: `type` of the error, as OpenAI names them.
        code: For programs.
        param: The field concerned.
        headers: Further ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str,
        param: str | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.code = code
        self.document = {
            "error": {"message": message, "type": kind, "param": param, "code": code},
        }


async def send_refusal(send: Send, refusal: RefusedError) -> None:
    """Sends what a refused request is told."""
    await send_json(send, refusal.status, refusal.document, refusal.headers)


async def send_json(send: Send, status: int, document: Any, headers: Headers = ()) -> None:
    """Sends one JSON document."""
    body = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    await send_bytes(send, status, body, ((b"content-type", b"application/json"), *headers))


async def send_bytes(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Sends a whole response."""
    # RFC 9110, section 8.6: an answer without content has no length either.
    length = () if status == 204 else ((b"content-length", str(len(body)).encode()),)
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, *length]},
    )
    await send({"type": "http.response.body", "body": body})
