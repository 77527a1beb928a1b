"""Real servers on this machine, each in a thread of its own, for tests of what is between them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from lorapack_gate import Gate
from lorapack_gate.setting import read_setting

from tests.gate.engine import Engine
from tests.gate.setting import POET, TABLES, gate_document, model, question, write_home

WHOLE = "whole"
"""Served name of the merged model that a neighbour answers as."""


class SlowEngine(Engine):
    """Streams numbered lines until it is told to stop, or its client leaves.

    Attributes:
        left: Set once a client has left before its answer was whole.
    """

    def __init__(self, tables: dict[str, list[float]], *, lines: int = 3) -> None:
        super().__init__(tables)
        self.lines = lines
        self.left = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/models":
            listed = [{"id": name, "object": "model", "max_model_len": 64} for name in self.tables]
            await self._send(send, json.dumps({"object": "list", "data": listed}).encode())
            return
        if scope["type"] == "lifespan" or scope["path"] != "/v1/chat/completions":
            await super().__call__(scope, receive, send)
            return
        self.headers = list(scope["headers"])
        self.asked.append((scope["path"], (await receive())["body"]))
        leaving = asyncio.create_task(self._watch(receive))
        start = {"type": "http.response.start", "status": 200}
        await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(self.lines):
            while number and not self.go_on.is_set() and not self.left.is_set():
                await asyncio.sleep(0.01)
            part = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        leaving.cancel()

    async def _watch(self, receive: Any) -> None:
        # An empty part of the body may come first.
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


def whole_gate(name: str = WHOLE) -> dict[str, Any]:
    """`gate.json` of a server of one merged model."""
    return {**gate_document(), "base": "", "models": [model(name, "merged")]}


def whole_expected(
    name: str = WHOLE, *, truth: list[float] = POET, base: list[float] = TABLES["tiny"]
) -> dict[str, Any]:
    """`expected.json` of it, with the base's answers as the proof recorded them."""
    questions = []
    for prompt in ([1, 2, 3], [4, 5]):
        asked = question(truth, prompt)
        recorded = dict(question(base, prompt, told=len(base))["top"])
        questions.append({**asked, "base": [recorded[token] for token, _ in asked["top"]]})
    models = [{"name": name, "kind": "merged", "kl_bound": 0.05, "questions": questions}]
    return {"schema_version": 1, "models": models}


def front_gate(**urls: str) -> dict[str, Any]:
    """`gate.json` of a server with neighbours of one model each, of the same name."""
    neighbours = [
        {"name": name, "url": url, "models": [model(name, "merged")]} for name, url in urls.items()
    ]
    return {**gate_document(), "neighbours": neighbours}


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serves an application by uvicorn, as vLLM does; yields its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def whole_server(folder: Path, engine: Any = None, **further: str) -> Iterator[str]:
    """A server of the one merged model, gate and all; yields its address."""
    given = write_home(folder, gate=whole_gate(), expected=whole_expected()) | further
    with listening(Gate(engine or SlowEngine({WHOLE: POET}), read_setting(given, folder))) as url:
        yield url


@contextmanager
def front_server(folder: Path, engine: Any = None, **urls: str) -> Iterator[str]:
    """A server of a base and adapters with neighbours; yields its address."""
    given = write_home(folder, gate=front_gate(**urls))
    with listening(Gate(engine or SlowEngine(TABLES), read_setting(given, folder))) as url:
        yield url


def free_port() -> int:
    """Returns a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
