"""Handing a request on to another server, and its answer back, part by part."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from lorapack_gate.address import Address
from lorapack_gate.answer import Receive, Scope, Send
from lorapack_gate.body import GoneError
from lorapack_gate.door import find_path
from lorapack_gate.exchange import ExchangeError, Headers, exchange

_OF_CONNECTION = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
        b"upgrade", b"http2-settings",
    }
)  # fmt: skip
"""Fields about one connection, which end with it: RFC 9110, section 7.6.1."""

_OF_REQUEST = frozenset({b"host", b"content-length", b"expect", b"forwarded", b"origin"})
"""What is about this server, or has been dealt with by it."""

_OF_RESPONSE = frozenset({b"date", b"server"})
"""What each server says of itself."""


class BrokenError(Exception):
    """The other server broke off after the answer had begun: it cannot be told to the client."""


async def forward(
    address: Address, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    """Hands a request on, with all that it says of itself, and streams the answer back.

    Args:
        address: Of the other server.
        scope: Of the request.
        body: All of it.
        receive: Tells when the client leaves; the other server is then told so at once.
        send: Takes the answer.

    Raises:
        ExchangeError: Nothing has been answered yet, and nothing will be.
        BrokenError: The answer broke off.
        GoneError: The client left.
    """
    passing = asyncio.create_task(_pass(address, scope, body, send))
    leaving = asyncio.create_task(_wait_for_leave(receive))
    try:
        await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not passing.done():
            raise GoneError
        passing.result()
    finally:
        passing.cancel()
        leaving.cancel()
        # The connection is closed before anything else happens.
        await asyncio.gather(passing, leaving, return_exceptions=True)


async def _pass(address: Address, scope: Scope, body: bytes, send: Send) -> None:
    query = scope.get("query_string", b"")
    target = find_path(scope).encode() + (b"?" + query if query else b"")
    headers = kept(scope["headers"], _OF_REQUEST)
    async with exchange(address, scope["method"], target, headers, body) as response:
        told = kept(response.headers, _OF_RESPONSE)
        await send(
            {"type": "http.response.start", "status": response.status, "headers": list(told)}
        )
        try:
            async for part in response.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except ExchangeError as problem:
            raise BrokenError(str(problem)) from problem
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def kept(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Headers:
    """Returns the fields that go on with a message: not those of one connection.

    Args:
        headers: With names in lower case.
        dropped: Further ones to leave out.
    """
    named = {
        name.strip().lower()
        for field, value in headers
        if field == b"connection"
        for name in value.split(b",")
    }
    return tuple(
        (field, value)
        for field, value in headers
        if field not in _OF_CONNECTION | named | dropped and not field.startswith(b"x-forwarded-")
    )


async def _wait_for_leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
