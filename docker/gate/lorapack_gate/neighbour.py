"""The other servers of a bundle: how they are, and what they serve."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorapack_gate.document import Neighbour
from lorapack_gate.exchange import ExchangeError, Headers, fetch

_SECONDS = 2.0
_FRESH_SECONDS = 1.0
"""How long an answer counts: who asks for readiness needs no key, and may ask often."""
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Seen:
    """How a neighbour was when it was last asked.

    Attributes:
        name: Of it.
        ready: Whether it answers for its models.
        proven: Whether its answers have been compared with the proof's.
        reason: Why it is not ready, or nothing.
        models: The figures of its probe, as it told them.
    """

    name: str
    ready: bool
    proven: bool
    reason: str
    models: tuple[dict[str, Any], ...] = ()


class Neighbours:
    """The neighbours of one server.

    Args:
        all_of_them: In the bundle's order.
    """

    def __init__(self, all_of_them: Sequence[Neighbour]) -> None:
        self._all = tuple(all_of_them)
        self._seen: tuple[Seen, ...] = ()
        self._asked = -_FRESH_SECONDS
        self._lock = asyncio.Lock()

    async def look(self) -> tuple[Seen, ...]:
        """Returns how each is; asks them at most once a second, all at the same time."""
        async with self._lock:
            if self._all and time.monotonic() - self._asked >= _FRESH_SECONDS:
                self._seen = tuple(await asyncio.gather(*map(_look, self._all)))
                self._asked = time.monotonic()
            return self._seen

    async def list_models(self, headers: Headers) -> list[dict[str, Any]]:
        """Returns an entry for every model of theirs, also of one that cannot be reached.

        Args:
            headers: Of the client's request: its key is what opens them.
        """
        asked = (_list_models(neighbour, headers) for neighbour in self._all)
        return [entry for entries in await asyncio.gather(*asked) for entry in entries]


async def _look(neighbour: Neighbour) -> Seen:
    told: dict[str, Any] = {}
    try:
        _, body = await fetch(neighbour.address, b"/ready", seconds=_SECONDS, limit=_MAX_BYTES)
        told = dict(json.loads(body))
        reason = str(told["reason"] or "")
    except ExchangeError as problem:
        reason = f"it cannot be reached at {neighbour.address}: {problem}"
    except (ValueError, TypeError, KeyError, RecursionError):
        reason = f"what answers at {neighbour.address} is no server of a bundle"
    ready = told.get("ready") is True
    models = told.get("models")
    return Seen(
        name=neighbour.name,
        ready=ready,
        proven=told.get("proven") is True,
        reason="" if ready else reason or "it does not say why",
        models=tuple(models) if isinstance(models, list) else (),
    )


async def _list_models(neighbour: Neighbour, headers: Headers) -> list[dict[str, Any]]:
    plain = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
        for name in neighbour.models
    }
    own = [(name, value) for name, value in headers if name == b"authorization"]
    try:
        status, body = await fetch(
            neighbour.address, b"/v1/models", own, seconds=_SECONDS, limit=_MAX_BYTES
        )
        told = {entry["id"]: entry for entry in json.loads(body)["data"]} if status == 200 else {}
    except (ExchangeError, ValueError, TypeError, KeyError, RecursionError):
        told = {}
    return [told.get(name, plain[name]) for name in neighbour.models]
