"""Pytest fixtures. In a conftest.py:

from tests.loopback_hub.fixture import client, loopback_hub  # noqa: F401
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.loopback_hub.client import Client
from tests.loopback_hub.server import LoopbackHub


@pytest.fixture
def loopback_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """An empty Hub. Its own failures fail the test."""
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub
        assert hub.errors == []


@pytest.fixture
def client(
    loopback_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Client]]:
    """Starts client processes: `client(token="hf_…", home=…, environment={…})`."""
    with ExitStack() as stack:

        def start(
            *,
            token: str | None = None,
            home: Path | None = None,
            environment: dict[str, str] | None = None,
        ) -> Client:
            place = home or tmp_path_factory.mktemp("home")
            made = Client(loopback_hub, place, token=token, environment=environment)
            return stack.enter_context(made)

        yield start
