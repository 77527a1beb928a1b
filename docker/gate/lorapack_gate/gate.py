"""The gate in front of vLLM: an ASGI middleware that `--middleware lorapack_gate.Gate` loads.

It lets through what `door.DOORS` lists to who has a key, and answers for a model only once the
probe has seen that the server behind it serves every adapter as the proof says. What passes is
handed on untouched: a response that streams, streams. What another server of the bundle answers
as is handed on to that one, whose own gate does the same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from lorapack_gate.answer import (
    App,
    Message,
    Receive,
    RefusedError,
    Scope,
    Send,
    send_bytes,
    send_json,
    send_refusal,
)
from lorapack_gate.body import (
    GoneError,
    complete_request,
    named_model,
    parse_request,
    read_body,
    replay,
    with_length,
)
from lorapack_gate.document import Neighbour
from lorapack_gate.door import DOORS, Door, find_path
from lorapack_gate.drain import Drain
from lorapack_gate.exchange import ExchangeError
from lorapack_gate.forward import BrokenError, forward
from lorapack_gate.inner import ask_inside
from lorapack_gate.key import check_local, has_key, missing_key
from lorapack_gate.metric import Metrics
from lorapack_gate.neighbour import Neighbours
from lorapack_gate.origin import allowed_headers, is_preflight, send_preflight, with_headers
from lorapack_gate.readiness import Readiness
from lorapack_gate.setting import Setting, read_setting

Answer = Callable[[Send], Awaitable[None]]
"""Answers a request by sending."""

_LOG = logging.getLogger("uvicorn.error")
_TEXT = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)


class Gate:
    """The middleware.

    Args:
        app: What is behind it.
        setting: What it goes by; by default read from the environment and the current folder.

    Raises:
        SettingError: A key, file or variable is missing or wrong.
    """

    def __init__(self, app: App, setting: Setting | None = None) -> None:
        home = Path(os.environ.get("LORAPACK_HOME") or ".")
        self._app = app
        self._setting = setting or read_setting(os.environ, home)
        self._metrics = Metrics(self._setting.names)
        self._neighbours = Neighbours(self._setting.neighbours)
        self._readiness = Readiness(self._setting)
        self._drain = Drain(lambda: self._metrics.waiting, self._setting.drain_seconds)
        self._host: Any = None
        self._probing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http":
            self._begin(scope)
            await self._guard(scope, receive, send)
        else:
            # Nothing that is let through speaks WebSocket; closed before it is accepted, it is 403.
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._begin(scope)
            elif message["type"].startswith("lifespan.shutdown") and self._probing is not None:
                self._probing.cancel()
            await send(message)

        await self._app(scope, receive, told)

    def _begin(self, scope: Scope) -> None:
        """Starts the probe once, as soon as the server behind can be asked."""
        if self._probing is None:
            self._host = scope.get("app")
            self._drain.hook(self._host)
            self._probing = asyncio.create_task(self._probe())
            self._probing.add_done_callback(self._told)

    async def _probe(self) -> None:
        await self._readiness.probe(self._ask)

    def _told(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (problem := task.exception()) is not None:
            self._readiness.fail(f"the probe broke off: {type(problem).__name__}: {problem}")
        self._readiness.tell(_LOG)
        self._readiness.record(self._metrics)

    async def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        return await ask_inside(self._app, self._host, method, path, body)

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = DOORS.get(find_path(scope))
        crossing = allowed_headers(scope, self._setting.origins)
        if crossing and door is not None and is_preflight(scope):
            await send_preflight(send, door.methods, crossing)
            return
        send = with_headers(send, crossing)
        try:
            self._check_peer(scope, door)
            if door is None:
                raise RefusedError(404, "this server has no such path", code="unknown_path")
            _check_method(scope, door)
            await self._enter(door, scope, receive, send)
        except RefusedError as refusal:
            self._metrics.refused[refusal.code] += 1
            await send_refusal(send, refusal)
        except GoneError:
            self._metrics.refused["disconnected"] += 1

    def _check_peer(self, scope: Scope, door: Door | None) -> None:
        if door is not None and door.is_open:
            return
        if self._setting.without_key:
            check_local(scope, self._setting.origins)
            return
        keys = self._setting.keys
        if door is not None and door.kind == "metrics":
            keys = (*keys, *self._setting.metrics_keys)
        if not has_key(scope, keys):
            raise missing_key()

    async def _enter(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        if door.kind == "ready":
            seen = await self._neighbours.look()
            document = self._readiness.document(seen, stopping=self._drain.stopping)
            await send_json(send, 200 if document["ready"] else 503, document)
        elif door.kind == "metrics":
            await self._send_metrics(send)
        elif door.kind == "models" and self._setting.neighbours:
            await self._list_models(scope, send)
        elif door.takes_model:
            await self._admit(door, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _list_models(self, scope: Scope, send: Send) -> None:
        status, body = await self._ask("GET", find_path(scope))
        if status == 200:
            document = json.loads(body)
            document["data"] += await self._neighbours.list_models(tuple(scope["headers"]))
            body = json.dumps(document).encode()
        await send_bytes(send, status, body, ((b"content-type", b"application/json"),))

    async def _send_metrics(self, send: Send) -> None:
        seen = await self._neighbours.look()
        self._metrics.neighbours = {each.name: each.ready for each in seen}
        status, body = await self._ask("GET", "/metrics")
        if status == 200:
            body = body.rstrip(b"\n") + b"\n" + self._metrics.render().encode()
        await send_bytes(send, status, body, _TEXT)

    async def _admit(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        self._readiness.check()
        if self._drain.stopping:
            raise RefusedError(
                503,
                "the server is being stopped: ask another one, or try again later",
                kind="service_unavailable_error",
                code="stopping",
                headers=((b"connection", b"close"), (b"retry-after", b"5")),
            )
        limit = self._setting.max_concurrency
        if self._metrics.waiting >= limit:
            raise RefusedError(
                429,
                f"{limit} requests are in flight, the most that this server takes: try again later",
                kind="rate_limit_error",
                code="too_many_requests",
                headers=((b"retry-after", b"1"),),
            )
        self._metrics.waiting += 1
        try:
            body = await read_body(scope, receive, self._setting.max_body_bytes)
            payload = parse_request(body)
            name = named_model(payload, self._setting)
            neighbour = self._setting.find_neighbour(name)
            if neighbour is not None:
                answer: Answer = partial(_hand_on, neighbour, scope, body, receive)
            else:
                answer = self._own_answer(door, name, payload, body, scope, receive)
            await self._count(name, answer, send)
        finally:
            self._metrics.waiting -= 1

    def _own_answer(
        self,
        door: Door,
        name: str,
        payload: dict[str, Any],
        body: bytes,
        scope: Scope,
        receive: Receive,
    ) -> Answer:
        model = self._setting.find_model(name)
        assert model is not None
        completed = complete_request(payload, body, door, model)
        if completed is not body:
            scope = with_length(scope, len(completed))
        return partial(self._app, scope, replay(completed, receive))

    async def _count(self, name: str, answer: Answer, send: Send) -> None:
        metrics, begun = self._metrics, time.perf_counter()
        status, first = 500, True

        async def watched(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status = message["status"]
            elif first:
                first = False
                metrics.first_byte[name].observe(time.perf_counter() - begun)
            await send(message)

        metrics.in_flight[name] += 1
        try:
            await answer(watched)
        except RefusedError as refusal:
            status = refusal.status
            raise
        finally:
            metrics.in_flight[name] -= 1
            metrics.requests[name, status] += 1
            metrics.duration[name].observe(time.perf_counter() - begun)


async def _hand_on(
    neighbour: Neighbour, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    try:
        await forward(neighbour.address, scope, body, receive, send)
    except ExchangeError as problem:
        _LOG.warning("lorapack: neighbour %r at %s: %s", neighbour.name, neighbour.address, problem)
        raise RefusedError(
            503,
            f"the server of this model, {neighbour.name!r}, cannot be reached: try again later",
            kind="service_unavailable_error",
            code="neighbour_unreachable",
            headers=((b"retry-after", b"1"),),
        ) from problem
    except BrokenError as problem:
        # Returning from here with half an answer makes the server close the connection, which is
        # what tells the client that it is half an answer.
        _LOG.error("lorapack: neighbour %r broke off an answer: %s", neighbour.name, problem)


def _check_method(scope: Scope, door: Door) -> None:
    if scope["method"] not in door.methods:
        raise RefusedError(
            405,
            f"{scope['path']} takes {' and '.join(door.methods)}",
            code="method_not_allowed",
            headers=((b"allow", ", ".join(door.methods).encode()),),
        )
