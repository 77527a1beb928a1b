"""Ending in order: what is being answered is finished before the engine is stopped.

vLLM stops its engine first and its HTTP server after it. What the engine drains by itself leaves
out requests that are still being rendered, and a new one meanwhile gets an internal error.

Source: vLLM 0.32.0, entrypoints/launchers/launcher.py, handle_shutdown: on SIGTERM and SIGINT,
`app.state.engine_client.shutdown(timeout=…)` is called in a thread, and then the server is ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_PAUSE_SECONDS = 0.05


class Drain:
    """Holds off the end of the engine while requests are in flight.

    Args:
        count: Returns how many are.
        seconds: The longest that they are waited for.

    Attributes:
        stopping: Whether the server ends; nothing new is to be let in.
    """

    def __init__(self, count: Callable[[], int], seconds: float) -> None:
        self._count = count
        self._seconds = seconds
        self._hooked = False
        self.stopping = False

    def hook(self, host: Any) -> None:
        """Puts itself before the engine's own end, where there is an engine.

        Args:
            host: The server's application, as `scope["app"]` names it.
        """
        client = getattr(getattr(host, "state", None), "engine_client", None)
        end = getattr(client, "shutdown", None)
        if self._hooked or not callable(end):
            return
        self._hooked = True

        def end_in_order(*args: Any, **kwargs: Any) -> Any:
            self._wait()
            return end(*args, **kwargs)

        client.shutdown = end_in_order  # type: ignore[union-attr]

    def _wait(self) -> None:
        """Waits until nothing is in flight; the second end of one server waits no more."""
        if self.stopping:
            return
        self.stopping = True
        latest = time.monotonic() + self._seconds
        while self._count() and time.monotonic() < latest:
            time.sleep(_PAUSE_SECONDS)
