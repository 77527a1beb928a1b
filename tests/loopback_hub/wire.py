"""HTTP for the loopback Hub: reading bodies, sending answers, and failing on demand."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_hub.fault import Fault, Faults, Request

_CHUNK_BYTES = 1 << 16


class HttpError(Exception):
    """An answer that refuses: status, the Hub's `X-Error-Code`, and a message."""

    def __init__(self, status: int, message: str, code: str = "", **extra: object) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.extra = extra


@dataclass
class Call:
    """One request, parsed. `body` is bytes, or a file for routes that store what they get."""

    method: str
    params: dict[str, str]
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    body_file: Path | None

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str | None:
        kind, _, value = self.headers.get("authorization", "").partition(" ")
        return value if kind == "Bearer" and value else None


@dataclass
class Reply:
    status: int = 200
    value: Any = None
    file: Path | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Route:
    """A route's name, method, pattern of the unescaped path, and what answers it."""

    name: str
    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    answer: Callable[[Any, Call], Reply]
    stores_body: bool = False


class Server(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1 that answers by a table of routes."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: Any, routes: tuple[Route, ...], faults: Faults) -> None:
        self.hub = hub
        self.routes = routes
        self.faults = faults
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that goes away is no error here; anything else is kept for the test."""
        self.hub.note_error()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    disable_nagle_algorithm = True
    _read: int = 0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        route, match = self._find(path)
        name = route.name if route else "unknown"
        fault = self.server.faults.take(self.command, name, path)
        if fault and fault.action:
            fault.action()
        self._read = 0
        handle, place = tempfile.mkstemp(dir=self.server.hub.store.root)
        os.close(handle)
        stored = Path(place)
        try:
            complete = self._receive(stored, self._cut_of_upload(fault))
            if not complete:
                self._log(name, path, 0)
                self._cut()
                return
            call = Call(
                self.command,
                {key: value for key, value in match.groupdict().items() if value} if match else {},
                parse_qs(parts.query),
                {key.lower(): value for key, value in self.headers.items()},
                b"" if route and route.stores_body else stored.read_bytes(),
                stored if route and route.stores_body else None,
            )
            reply = self._answer(route, call, fault)
            self._log(name, path, reply.status)
            if fault and fault.lose_reply:
                self._cut()
                return
            self._send(reply, fault)
        finally:
            stored.unlink(missing_ok=True)

    def _find(self, path: str) -> tuple[Route | None, re.Match[str] | None]:
        for route in self.server.routes:
            match = route.pattern.fullmatch(path)
            if match and self.command in route.methods:
                return route, match
        return None, None

    def _cut_of_upload(self, fault: Fault | None) -> int | None:
        return fault.cut_after if fault and self.command in ("PUT", "POST") else None

    def _receive(self, target: Path, cut_after: int | None) -> bool:
        with target.open("wb") as file:
            for chunk in self._body():
                if cut_after is not None and self._read + len(chunk) > cut_after:
                    return False
                self._read += len(chunk)
                file.write(chunk)
        return cut_after is None

    def _body(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("content-length") or 0)
        while left:
            chunk = self.rfile.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ConnectionError("the client went away")
            left -= len(chunk)
            yield chunk

    def _answer(self, route: Route | None, call: Call, fault: Fault | None) -> Reply:
        if fault and fault.status is not None:
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            headers = {"X-Error-Message": fault.message, **wait}
            return Reply(fault.status, {"error": fault.message}, headers=headers)
        if route is None:
            return Reply(404, {"error": "Not Found"})
        try:
            return route.answer(self.server.hub, call)
        except HttpError as problem:
            headers = {"X-Error-Message": problem.message}
            if problem.code:
                headers["X-Error-Code"] = problem.code
            value = {"error": problem.message, **problem.extra}
            return Reply(problem.status, value, headers=headers)

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        status, start, size = self._extent(reply)
        self.send_response(status)
        self.send_header("X-Request-Id", uuid.uuid4().hex)
        self.send_header("Content-Length", str(size))
        if reply.file is None:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        for key, value in reply.headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut_after = fault.cut_after if fault and self.command == "GET" else None
        data = self._payload(reply, start, alter=bool(fault and fault.alter))
        left = size if cut_after is None else min(cut_after, size)
        for chunk in data:
            self.wfile.write(chunk[:left])
            left -= min(left, len(chunk))
            if not left:
                break
        if cut_after is not None:
            self.wfile.flush()
            self._cut(abruptly=False)

    def _extent(self, reply: Reply) -> tuple[int, int, int]:
        if reply.file is None:
            return reply.status, 0, len(self._json(reply))
        total = reply.file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if not wanted:
            return reply.status, 0, total
        start = int(wanted[1])
        last = min(int(wanted[2] or total), total - 1)
        reply.headers["Content-Range"] = f"bytes {start}-{last}/{total}"
        return 206, start, last + 1 - start

    def _payload(self, reply: Reply, start: int, *, alter: bool) -> Iterator[bytes]:
        if reply.file is None:
            yield self._json(reply)
            return
        middle = reply.file.stat().st_size // 2
        with reply.file.open("rb") as file:
            file.seek(start)
            at = start
            while chunk := file.read(_CHUNK_BYTES):
                if alter and at <= middle < at + len(chunk):
                    changed = bytearray(chunk)
                    changed[middle - at] ^= 1
                    chunk = bytes(changed)
                yield chunk
                at += len(chunk)

    @staticmethod
    def _json(reply: Reply) -> bytes:
        return b"" if reply.value is None else json.dumps(reply.value).encode()

    def _cut(self, *, abruptly: bool = True) -> None:
        self.close_connection = True
        if abruptly:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def _log(self, route: str, path: str, status: int) -> None:
        authorized = "authorization" in self.headers
        wanted = self.headers.get("range")
        self.server.hub.note(
            Request(self.command, route, path, status, self._read, authorized, wanted)
        )


def keep(source: Path, target: Path) -> None:
    """Moves a received body to its place; it may be there already."""
    shutil.copyfile(source, target.with_suffix(".new"))
    target.with_suffix(".new").replace(target)
