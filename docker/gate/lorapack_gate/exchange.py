"""One request to another server by HTTP/1.1, and its response as it arrives.

Every exchange has a connection of its own, which ends with it: giving up on an answer is closing
the connection, and nothing of one client's can be left in the way of another's.

Source: RFC 9112, sections 2 to 7: message framing by length, by chunks, or by the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lorapack_gate.address import Address

Headers = tuple[tuple[bytes, bytes], ...]

_CONNECT_SECONDS = 5.0
_HEAD_BYTES = 1 << 16
_PART_BYTES = 1 << 16
_CHUNK_DIGITS = 16
_FORBIDDEN = frozenset(b"\r\n\0")


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
        ExchangeError: There is no whole head of a response.
        ValueError: A header or the target would end its line.
    """
    message = _render(address, method, target, headers, body)
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(address.host, address.port, limit=_HEAD_BYTES),
            _CONNECT_SECONDS,
        )
    except (OSError, asyncio.TimeoutError) as problem:  # noqa: UP041 - Python 3.10
        raise ExchangeError(_reason(problem)) from problem
    try:
        try:
            writer.write(message)
            await writer.drain()
            status, told = await _read_head(reader)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as problem:
            raise ExchangeError(_reason(problem)) from problem
        yield Response(status, told, _parts(reader, method, status, dict(told)))
    finally:
        # What has not been read is not waited for.
        writer.transport.abort()


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


def _render(
    address: Address,
    method: str,
    target: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
) -> bytes:
    lines = [
        b"%s %s HTTP/1.1" % (method.encode(), address.path.encode() + target),
        b"host: %s" % str(address).encode(),
        b"connection: close",
        b"content-length: %d" % len(body),
        *(b"%s: %s" % pair for pair in headers),
    ]
    if b" " in target or any(_FORBIDDEN.intersection(line) for line in lines):
        raise ValueError("a header that does not fit on a line")
    return b"\r\n".join((*lines, b"", body))


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, Headers]:
    status, headers = 100, Headers()
    while 100 <= status < 200:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ValueError(f"no HTTP: {first[:80]!r}")
        status = int(rest[:3])
        headers = tuple(_header(line) for line in lines)
    return status, headers


def _header(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    if not colon or not name or name != name.strip():
        raise ValueError(f"no header: {line[:80]!r}")
    return name.lower(), value.strip()


async def _parts(
    reader: asyncio.StreamReader, method: str, status: int, headers: dict[bytes, bytes]
) -> AsyncIterator[bytes]:
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    try:
        if method == "HEAD" or status in (204, 304):
            return
        if coding is not None:
            if coding.lower() != b"chunked":
                raise ValueError(f"transfer-encoding {coding[:80]!r}")
            async for part in _chunks(reader):
                yield part
        elif length is not None:
            async for part in _exactly(reader, int(length)):
                yield part
        else:
            while part := await reader.read(_PART_BYTES):
                yield part
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as problem:
        raise ExchangeError(_reason(problem)) from problem


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0].strip()[:_CHUNK_DIGITS], 16)
        if not size:
            # Trailers, which nobody reads.
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return
        async for part in _exactly(reader, size):
            yield part
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("a chunk that is longer than it says")


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        part = await reader.read(min(size, _PART_BYTES))
        if not part:
            raise EOFError("the answer broke off")
        size -= len(part)
        yield part


def _reason(problem: Exception) -> str:
    if isinstance(problem, asyncio.IncompleteReadError):
        return "the connection was closed before the answer was whole"
    if isinstance(problem, asyncio.TimeoutError):
        return f"no connection within {_CONNECT_SECONDS:.0f} seconds"
    return str(problem) or type(problem).__name__
