"""Responses as they come over a wire, in odd pieces, cut off, or no HTTP at all."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Awaitable, Callable

import pytest
from lorapack_gate.address import Address, parse_address
from lorapack_gate.exchange import ExchangeError, exchange, fetch
from lorapack_gate.forward import kept

from tests.gate.server import free_port

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE: tuple[bytes, ...] = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    CHUNKED + b"5\r\nhello\r\nA;ext=1\r\n0123456789\r\n0\r\n\r\n",
    CHUNKED + b"5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
    CHUNKED + b"20000\r\n" + b"x" * 0x20000 + b"\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 2\r\nX-A:  b\r\n\r\nno",
    b"HTTP/1.1 204 No Content\r\n\r\n",
)
BROKEN: tuple[bytes, ...] = (
    b"",
    b"HTTP/1.1 200 OK\r\nContent-Le",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 17) + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    CHUNKED + b"5\r\nhel",
    CHUNKED + b"5\r\nhello\r\n",
    CHUNKED + b"5\r\nhello, there\r\n0\r\n\r\n",
    CHUNKED + b"zz\r\nhello\r\n",
)


async def answered(
    raw: bytes, ask: Callable[[Address], Awaitable[object]], *, piece: int = 1 << 20
) -> tuple[object, bytes]:
    """Returns what asking a server came to that answers so, and what the server was sent."""
    seen = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(raw), piece):
            writer.write(raw[start : start + piece])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await ask(Address("127.0.0.1", port)), seen


async def read(address: Address) -> tuple[int, dict[bytes, bytes], bytes]:
    async with exchange(address, "GET", b"/x?y=1", [(b"a", b"b")]) as response:
        parts = [part async for part in response.parts]
        return response.status, dict(response.headers), b"".join(parts)


@pytest.mark.parametrize("piece", [1 << 20, 7])
@pytest.mark.parametrize("raw", WHOLE)
def test_response_is_what_pythons_own_client_reads(raw: bytes, piece: int) -> None:
    (status, headers, body), seen = asyncio.run(answered(raw, read, piece=piece))  # type: ignore[misc]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        ours.settimeout(5)
        # Larger than what a socket holds, the last of it is left out of the comparison.
        ours.sendall(raw[: 1 << 15])
        ours.shutdown(socket.SHUT_WR)
        wanted = http.client.HTTPResponse(theirs)
        wanted.begin()
        assert status == wanted.status
        told = {name.lower().encode(): value.encode() for name, value in wanted.getheaders()}
        assert headers == told
        if len(raw) <= 1 << 15:
            assert body == wanted.read()
        else:
            assert len(body) == 0x20000
    assert seen.startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nconnection: close\r\n" in seen
    assert b"\r\na: b\r\n" in seen


@pytest.mark.parametrize("raw", BROKEN)
def test_what_is_cut_off_or_no_http_is_an_error(raw: bytes) -> None:
    with pytest.raises(ExchangeError) as caught:
        asyncio.run(asyncio.wait_for(answered(raw, read), 5))
    assert str(caught.value)


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(ExchangeError, match="connection"):
        asyncio.run(read(Address("127.0.0.1", free_port())))


def test_silence_is_not_waited_for_without_end() -> None:
    async def ask(address: Address) -> None:
        with pytest.raises(ExchangeError, match=r"no answer within 0\.2 seconds"):
            await fetch(address, b"/", seconds=0.2, limit=10)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Until the client closes.
        await reader.read()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
            await ask(Address("127.0.0.1", server.sockets[0].getsockname()[1]))

    asyncio.run(asyncio.wait_for(run(), 5))


def test_answer_that_is_too_long_is_not_kept() -> None:
    async def ask(address: Address) -> None:
        with pytest.raises(ExchangeError, match="more than 4 bytes"):
            await fetch(address, b"/", seconds=5, limit=4)

    asyncio.run(answered(WHOLE[0], ask))


@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a\n", b"b")])
def test_nothing_of_a_clients_makes_a_line_of_its_own(header: tuple[bytes, bytes]) -> None:
    async def ask(address: Address) -> None:
        with pytest.raises(ExchangeError):
            async with exchange(address, "POST", b"/", [header]):
                raise AssertionError

    _, seen = asyncio.run(answered(WHOLE[0], ask))
    assert not seen


def test_a_path_stays_one_word_of_its_line() -> None:
    async def ask(address: Address) -> None:
        async with exchange(address, "GET", b"/ HTTP/1.0", []):
            pass

    async def ask_with_lines(address: Address) -> None:
        with pytest.raises(ExchangeError):
            await ask_lines(address)

    async def ask_lines(address: Address) -> None:
        async with exchange(address, "GET", b"/\r\na: b", []):
            pass

    _, seen = asyncio.run(answered(WHOLE[0], ask))
    assert seen.splitlines()[0] == b"GET /%20HTTP/1.0 HTTP/1.1"
    _, seen = asyncio.run(answered(WHOLE[0], ask_with_lines))
    assert not seen


def test_fields_of_one_connection_stay_with_it() -> None:
    given = (
        (b"connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"transfer-encoding", b"chunked"),
        (b"accept", b"*/*"), (b"x-forwarded-proto", b"https"), (b"date", b"today"),
    )  # fmt: skip
    assert kept(given, frozenset({b"date"})) == ((b"accept", b"*/*"),)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://base-pirate:8000", "base-pirate:8000"),
        ("http://127.0.0.1:1/", "127.0.0.1:1"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://somewhere", "somewhere:80"),
        ("http://127.0.0.1:8000/models/base-pirate/", "127.0.0.1:8000"),
    ],
)
def test_addresses(url: str, wanted: str) -> None:
    address = parse_address(url)
    assert str(address) == wanted
    assert address.path == ("/models/base-pirate" if "models" in url else "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "b",
        "https://b:1",
        "http://",
        "http://b:x",
        "http://b/../v1",
        "http://b//v1",
        "http://b/%2e",
        "http://b/a b",
        "http://u@b",
        "http://b?q",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(url)
