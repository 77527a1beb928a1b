"""Bad days of a Hub: what goes wrong, on which route, how often; and the log of requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Fault:
    """One thing that goes wrong `times` times on a route.

    Attributes:
        route: Name of a route, see `routes.ROUTES`.
        times: How many requests it still meets.
        containing: Only requests whose path holds this text.
        method: Only requests of this method.
        status: Answer with this status instead.
        retry_after: Seconds for the `Retry-After` header of that answer.
        message: The error text of that answer.
        cut_after: Close the connection after so many bytes of the body, the request's on an
            upload, the answer's on a download.
        lose_reply: Do the work, then close the connection instead of answering.
        alter: Flip one bit in the middle of the answer's body.
        action: Called before the request is handled.
    """

    route: str
    times: int = 1
    containing: str = ""
    method: str = ""
    status: int | None = None
    retry_after: int | None = None
    message: str = "the loopback Hub was told to fail"
    cut_after: int | None = None
    lose_reply: bool = False
    alter: bool = False
    action: Callable[[], object] | None = None


@dataclass(frozen=True)
class Request:
    """One request as it was answered. No header value is kept but `Range`."""

    method: str
    route: str
    path: str
    status: int
    body_bytes: int
    authorized: bool
    range: str | None


class Faults:
    """The faults still to come; taken one at a time by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, method: str, route: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                fits = fault.route == route and fault.containing in path
                if fits and fault.method in ("", method) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None
