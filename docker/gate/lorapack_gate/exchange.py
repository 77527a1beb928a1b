"""One request to another server, and its response as it arrives.

HTTP is httpx's, by its transport alone: nothing is kept from one request to the next, no redirect
is followed, and what comes is passed on as it comes, compressed or not. It is there wherever vLLM
is, and loaded only where a bundle has several servers.

Every exchange has a connection of its own, which ends with it: giving up on an answer is closing
the connection, and nothing of one client's can be left in the way of another's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lorapack_gate.address import Address

Headers = tuple[tuple[bytes, bytes], ...]

_CONNECT_SECONDS = 5.0
_NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Addresses are of plain HTTP; reading the system's certificates would take milliseconds."""


class ExchangeError(Exception):
    """The other server cannot be reached, or breaks off, or does not speak HTTP."""


@dataclass(frozen=True)
class Response:
    """A response whose body is still on its way.

    Attributes:
        status: Of HTTP.
        headers: With names in lower case.
        parts: The body, as it arrives; raises ExchangeError where it breaks off.
    """

    status: int
    headers: Headers
    parts: AsyncIterator[bytes]


@asynccontextmanager
async def exchange(
    address: Address,
    method: str,
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes = b"",
) -> AsyncIterator[Response]:
    """Sends a request; leaving the context closes the connection.

    Args:
        address: Of the server.
        method: Of HTTP.
        target: Path and query.
        headers: Beside those that frame the message.
        body: All of it.

    Yields:
        The response, once its head is there.

    Raises:
        ExchangeError: There is no whole head of a response, or none can be asked for so.
    """
    import httpx

    async with httpx.AsyncHTTPTransport(verify=_NO_TRUST, trust_env=False) as transport:
        try:
            url = httpx.URL(
                scheme="http",
                host=address.host,
                port=address.port,
                raw_path=address.path.encode() + target,
            )
            request = httpx.Request(
                method,
                url,
                headers=[*headers, (b"connection", b"close")],
                content=body,
                extensions={"timeout": {"connect": _CONNECT_SECONDS}},
            )
            response = await transport.handle_async_request(request)
        except (httpx.HTTPError, httpx.InvalidURL) as problem:
            raise ExchangeError(_reason(problem)) from problem
        assert isinstance(response.stream, AsyncIterable)
        told = tuple((name.lower(), value) for name, value in response.headers.raw)
        yield Response(response.status_code, told, _parts(response.stream))


async def fetch(
    address: Address,
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    seconds: float,
    limit: int,
) -> tuple[int, bytes]:
    """Returns the status and the whole body of what is behind a path.

    Args:
        address: Of the server.
        target: Path and query.
        headers: Of the request.
        seconds: The longest that all of it may take.
        limit: Most bytes of a body.

    Raises:
        ExchangeError: There is no such answer in time.
    """
    try:
        return await asyncio.wait_for(_fetch(address, target, headers, limit), seconds)
    except asyncio.TimeoutError as problem:  # noqa: UP041 - Python 3.10
        raise ExchangeError(f"no answer within {seconds:g} seconds") from problem


async def _fetch(
    address: Address, target: bytes, headers: Iterable[tuple[bytes, bytes]], limit: int
) -> tuple[int, bytes]:
    parts, size = [], 0
    async with exchange(address, "GET", target, headers) as response:
        async for part in response.parts:
            size += len(part)
            if size > limit:
                raise ExchangeError(f"an answer of more than {limit} bytes")
            parts.append(part)
        return response.status, b"".join(parts)


async def _parts(stream: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    import httpx

    try:
        async for part in stream:
            yield part
    except httpx.HTTPError as problem:
        raise ExchangeError(_reason(problem)) from problem


def _reason(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
