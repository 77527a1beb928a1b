"""A server of a bundle below a path, as Ray Serve has several behind one port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from lorapack_gate import Gate
from lorapack_gate.setting import read_setting

from tests.gate.asgi import bearer
from tests.gate.server import (
    WHOLE,
    SlowEngine,
    front_server,
    listening,
    whole_expected,
    whole_gate,
)
from tests.gate.setting import POET, write_home
from tests.gate.test_neighbour import CHAT, TALK, wait_until

PREFIX = "/models/base-whole"


def mount(app: Any) -> Any:
    """As Ray Serve's replicas call an application: the prefix is in both, path and root_path."""

    async def below(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(PREFIX)
            scope = {**scope, "root_path": PREFIX}
        await app(scope, receive, send)

    return below


def route(app: Any) -> Any:
    """As Starlette finds what is behind a path."""

    async def found(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix(scope["root_path"])}
        await app(scope, receive, send)

    return found


def test_neighbour_below_a_path_is_asked_there(tmp_path: Path) -> None:
    home = tmp_path / "whole"
    given = write_home(home, gate=whole_gate(), expected=whole_expected())
    engine = SlowEngine({WHOLE: POET})
    gate = Gate(route(engine), read_setting(given, home))
    with (
        listening(mount(gate)) as url,
        front_server(tmp_path / "front", whole=url + PREFIX) as first,
        httpx.Client(base_url=first, headers=bearer(), timeout=10) as client,
    ):
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.post(CHAT, json=TALK).status_code == 200
        assert engine.asked[-1][0] == CHAT
        assert client.get("/v1/models").json()["data"][-1]["max_model_len"] == 64
        # What is closed is closed there as well, and so is all of it without a key.
        closed = httpx.post(f"{url}{PREFIX}/v1/load_lora_adapter", headers=bearer(), json={})
        assert closed.status_code == 404
        assert httpx.post(f"{url}{PREFIX}{CHAT}", json=TALK).status_code == 401
        assert httpx.get(f"{url}{PREFIX}{PREFIX}/ready").status_code == 401
