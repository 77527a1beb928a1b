"""HTTP for the loopback Ollama: reading bodies, sending answers, and failing on demand."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_CHUNK_BYTES = 1 << 16


class RefusedError(Exception):
    """An answer that refuses: a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """One thing that goes wrong `times` times on a route.

    Attributes:
        route: `version`, `me`, `blob`, `create`, `show`, `chat` or `push`.
        times: How many requests it still meets.
        method: Only requests of this method.
        status: Answer with this status instead.
        message: The error text of that answer, or of the line within a stream.
        cut_after: Close the connection after so many bytes of the request's body.
        body: Answer with these bytes instead.
        stream_error: Let a stream begin, then say the message as an error.
        stream_cut: Let a stream begin, then close the connection.
        stream_end: Let a stream begin, then end it without success.
    """

    route: str
    times: int = 1
    method: str = ""
    status: int | None = None
    message: str = "the loopback Ollama was told to fail"
    cut_after: int | None = None
    body: bytes | None = None
    stream_error: bool = False
    stream_cut: bool = False
    stream_end: bool = False


@dataclass(frozen=True)
class Request:
    """One request as it came: how many bytes its body had, and the answer's status."""

    method: str
    route: str
    path: str
    nbytes: int
    status: int


class Server(ThreadingHTTPServer):
    daemon_threads = True
    ollama: Any

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that goes away is no error here; anything else is kept for the test."""
        problem = sys.exc_info()[1]
        if not isinstance(problem, ConnectionError):
            self.ollama.errors.append(repr(problem))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    _body_bytes = 0
    _route = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        self._body_bytes = 0
        self._route = self.path.removeprefix("/api/").partition("/")[0].replace("blobs", "blob")
        fault = self.server.ollama.take(self.command, self._route)
        try:
            self._answer(self._route, fault)
        except RefusedError as refusal:
            self._send(refusal.status, {"error": str(refusal)})

    def _note(self, status: int) -> None:
        """Logs the request, before its answer can be seen."""
        self.server.ollama.requests.append(
            Request(self.command, self._route, self.path, self._body_bytes, status)
        )

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _answer(self, route: str, fault: Fault | None) -> None:
        takes_blob = route == "blob" and self.command == "POST"
        if fault and fault.cut_after is not None:
            self.rfile.read(fault.cut_after)
            self._body_bytes = fault.cut_after
            self._note(0)
            self._cut()
        elif takes_blob and not (fault and fault.status):
            self._take_blob(self.path.rpartition("/")[2])
        else:
            body = self._read_all()
            document = {} if takes_blob else json.loads(body or b"{}")
            if fault and fault.status is not None:
                raise RefusedError(fault.status, fault.message)
            if fault and fault.body is not None:
                self._send_bytes(200, fault.body)
            elif route in ("create", "push"):
                self._stream(getattr(self.server.ollama, route)(document), fault)
            else:
                self._send(*self._value(route, document))

    def _value(self, route: str, document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        ollama = self.server.ollama
        if route == "blob":
            return 200 if ollama.blob(self.path.rpartition("/")[2]).exists() else 404, {}
        if route == "me":
            return (200, {"name": "ann"}) if ollama.signed_in else (401, {"error": "unauthorized"})
        if route == "version":
            return 200, {"version": ollama.version}
        if route in ("show", "chat"):
            return 200, getattr(ollama, route)(document)
        return 404, {"error": "page not found"}

    def _take_blob(self, digest: str) -> None:
        path = self.server.ollama.blob(digest)
        summed = hashlib.sha256()
        aside = path.with_suffix(f".{threading.get_ident()}")
        with aside.open("wb") as file:
            for chunk in self._chunks():
                summed.update(chunk)
                file.write(chunk)
        found = f"sha256:{summed.hexdigest()}"
        if found != digest:
            aside.unlink()
            raise RefusedError(400, f'digest mismatch, expected "{digest}", got "{found}"')
        aside.rename(path)
        self._send_bytes(201, b"")

    def _read_all(self) -> bytes:
        return b"".join(self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        left = int(self.headers["Content-Length"] or 0)
        while left:
            chunk = self.rfile.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ConnectionError("the client went away")
            left -= len(chunk)
            self._body_bytes += len(chunk)
            yield chunk

    def _stream(self, lines: Iterator[dict[str, Any]], fault: Fault | None) -> None:
        first = next(lines)
        self._note(200)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._write_line(first)
        if fault and fault.stream_cut:
            self._cut()
            return
        if fault and fault.stream_error:
            self._write_line({"error": fault.message})
        elif not (fault and fault.stream_end):
            for line in lines:
                self._write_line(line)
        self.wfile.write(b"0\r\n\r\n")

    def _write_line(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _send(self, status: int, value: dict[str, Any]) -> None:
        self._send_bytes(status, json.dumps(value).encode())

    def _send_bytes(self, status: int, data: bytes) -> None:
        self._note(status)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json; charset=utf-8")
        if status >= 400:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _cut(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.wfile.flush()
        self.connection.close()
