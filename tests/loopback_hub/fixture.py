"""Pytest fixtures. In a conftest.py:

from tests.loopback_hub.fixture import client, client_pool, hub_server, loopback_hub

The server and the client processes live for the whole session, since a process takes a second to
import the client; between tests they are emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.loopback_hub.client import Client
from tests.loopback_hub.server import LoopbackHub

StartClient = Callable[..., Client]


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def loopback_hub(hub_server: LoopbackHub) -> Iterator[LoopbackHub]:
    """An empty Hub. Its own failures fail the test."""
    hub_server.reset()
    yield hub_server
    assert hub_server.errors == []


@pytest.fixture(scope="session")
def client_pool() -> Iterator[tuple[ExitStack, list[Client]]]:
    """Processes that wait for a test."""
    with ExitStack() as stack:
        yield stack, []


@pytest.fixture
def client(
    loopback_hub: LoopbackHub,
    client_pool: tuple[ExitStack, list[Client]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartClient]:
    """Gives clients: `client(token="hf_…", home=…, environment={…})`.

    Those of a test share one process and its cache, as long as it lives. One with a home or
    variables of its own is a process of its own and ends with the test.
    """
    session, waiting = client_pool
    lent: list[Client] = []
    with ExitStack() as own:

        def start(
            *,
            token: str | None = None,
            home: Path | None = None,
            environment: dict[str, str] | None = None,
        ) -> Client:
            if home or environment:
                place = home or tmp_path_factory.mktemp("home")
                return own.enter_context(
                    Client(loopback_hub, place, token=token, environment=environment)
                )
            if not (lent and lent[-1].is_alive):
                if not waiting:
                    made = Client(loopback_hub, tmp_path_factory.mktemp("home"))
                    waiting.append(session.enter_context(made))
                lent.append(waiting.pop())
            return lent[-1].with_token(token)

        yield start
    for process in lent:
        if process.is_alive:
            process.refresh()
            waiting.append(process)
