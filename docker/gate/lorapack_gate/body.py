"""Bodies of requests: read within bounds, checked, and completed with what the model needs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lorapack_gate.answer import Message, Receive, RefusedError, Scope
from lorapack_gate.document import Model
from lorapack_gate.door import Door
from lorapack_gate.setting import Setting

_BODY_SECONDS = 30.0


class GoneError(Exception):
    """The client left before its request was whole."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Reads the body of a request.

    Raises:
        RefusedError: It is larger than `limit` bytes, or takes too long to arrive.
        GoneError: The client left.
    """
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if any(value.isdigit() and int(value[:18]) > limit for value in lengths):
        raise _too_large(limit)
    try:
        return await asyncio.wait_for(_collect(receive, limit), _BODY_SECONDS)
    except asyncio.TimeoutError as problem:  # noqa: UP041 - Python 3.10
        raise RefusedError(
            408,
            f"the request did not arrive within {_BODY_SECONDS:.0f} seconds",
            code="request_timeout",
        ) from problem


async def _collect(receive: Receive, limit: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a channel that hands over `body` at once, and then what the client does."""
    waiting = [body]

    async def give() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return give


def with_length(scope: Scope, size: int) -> Scope:
    """Returns the scope of a request whose body has been replaced by one of `size` bytes."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(size).encode())]}


def complete_request(payload: dict[str, Any], body: bytes, door: Door, model: Model) -> bytes:
    """Checks a request and adds what its model needs: a chat template, tokens that end answers.

    Args:
        payload: What the client sent, as `parse_request` read it.
        body: The same as it sent it.
        door: Where it sent it to.
        model: That it asks for.

    Returns:
        The body to go on with: the same bytes where nothing had to be added.

    Raises:
        RefusedError: A template of the client's own, or messages for a model without one.
    """
    _check_template(payload)
    talks = door.chat and "messages" in payload
    if talks and not model.chat:
        raise RefusedError(
            400,
            f"the model {model.name!r} has no chat template and takes no messages: "
            "send text to /v1/completions",
            code="no_chat_template",
            param="messages",
        )
    added: dict[str, Any] = {}
    if talks and model.chat_template is not None:
        added["chat_template"] = model.chat_template
    if door.kind == "generate" and model.stop_token_ids and not payload.get("ignore_eos"):
        added["stop_token_ids"] = _stops(payload, model)
    if not added:
        return body
    return json.dumps({**payload, **added}).encode()


def parse_request(body: bytes) -> dict[str, Any]:
    """Reads the JSON of a request.

    Raises:
        RefusedError: It is not JSON, or no object.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise RefusedError(
            400,
            f"the request is not valid JSON: {str(problem)[:200]}",
            code="invalid_json",
        ) from problem
    if not isinstance(payload, dict):
        raise RefusedError(400, "the request is not a JSON object", code="invalid_json")
    return payload


def named_model(payload: dict[str, Any], setting: Setting) -> str:
    """Returns which model a request is for.

    Raises:
        RefusedError: It names none, or one that neither this server nor a neighbour has.
    """
    name = payload.get("model")
    known = ", ".join(setting.names)
    if name is None:
        raise RefusedError(
            400,
            f"the request names no model; this server has: {known}",
            code="missing_model",
            param="model",
        )
    if not isinstance(name, str) or name not in setting.names:
        raise RefusedError(
            404,
            f"the model {name!r:.200} does not exist; this server has: {known}",
            kind="not_found_error",
            code="model_not_found",
            param="model",
        )
    return name


def _check_template(payload: dict[str, Any]) -> None:
    arguments = payload.get("chat_template_kwargs")
    inner = arguments.get("chat_template") if isinstance(arguments, dict) else None
    if payload.get("chat_template") is not None or inner is not None:
        raise RefusedError(
            400,
            "this server renders conversations with the model's own chat template only: "
            "leave chat_template out",
            code="chat_template_refused",
            param="chat_template",
        )


def _stops(payload: dict[str, Any], model: Model) -> list[Any]:
    given = payload.get("stop_token_ids") or []
    if not isinstance(given, list):
        raise RefusedError(
            400,
            "stop_token_ids is not a list of token ids",
            code="invalid_value",
            param="stop_token_ids",
        )
    return [*given, *(token for token in model.stop_token_ids if token not in given)]


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        413,
        f"the request is larger than {limit} bytes, the most that this server takes",
        code="request_too_large",
    )
