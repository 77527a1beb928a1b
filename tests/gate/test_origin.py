"""Pages in browsers: closed by default, and open for the web sites that are listed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lorapack_gate import Gate
from lorapack_gate.file import SettingError
from lorapack_gate.setting import read_setting

from tests.gate.asgi import ask, bearer, post
from tests.gate.engine import Engine
from tests.gate.setting import TABLES, settle, start, started_gate, write_home
from tests.gate.test_gate import CHAT, COMPLETE, running

PAGE = "https://app.example"
ASKS = {"origin": PAGE, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type"}  # fmt: skip
LISTED = f"http://localhost:3000, {PAGE}"


@running
async def test_no_page_may_ask_by_default(folder: Path) -> None:
    gate = await started_gate(folder)
    refused = await ask(gate, CHAT, method="OPTIONS", headers=ASKS)
    assert (refused.status, refused.code) == (401, "invalid_api_key")
    found = await ask(gate, "/v1/models", headers={"origin": PAGE, **bearer()})
    assert found.status == 200
    assert not any(name.startswith("access-control") for name in found.headers)


@running
async def test_listed_page_may_ask_with_a_key(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine, LORAPACK_ALLOWED_ORIGINS=LISTED)
    engine.asked.clear()
    told = await ask(gate, CHAT, method="OPTIONS", headers=ASKS)
    assert (told.status, told.body) == (204, b"")
    assert told.headers["access-control-allow-origin"] == PAGE
    assert told.headers["access-control-allow-methods"] == "POST"
    assert "authorization" in told.headers["access-control-allow-headers"]
    assert told.headers["vary"] == "origin"
    # To be asked what it takes is not to be asked.
    assert engine.asked == []
    found = await post(gate, COMPLETE, {"model": "tiny", "prompt": "a"}, headers={"origin": PAGE})
    assert found.status == 200
    assert found.headers["access-control-allow-origin"] == PAGE
    # A script that may read answers may read why it gets none.
    refused = await ask(gate, CHAT, method="POST", headers={"origin": PAGE})
    assert (refused.status, refused.code) == (401, "invalid_api_key")
    assert refused.headers["access-control-allow-origin"] == PAGE


@running
async def test_others_stay_out_and_closed_paths_closed(folder: Path) -> None:
    gate = await started_gate(folder, LORAPACK_ALLOWED_ORIGINS=LISTED)
    for page in ("https://evil.example", "null", f"{PAGE}.evil.example", PAGE.upper(), ""):
        refused = await ask(gate, CHAT, method="OPTIONS", headers={**ASKS, "origin": page})
        assert refused.status == 401, page
        assert "access-control-allow-origin" not in refused.headers
    assert (await ask(gate, "/invocations", method="OPTIONS", headers=ASKS)).status == 401
    plain = await ask(gate, CHAT, method="OPTIONS", headers={"origin": PAGE, **bearer()})
    assert plain.status == 405


@running
async def test_every_page_may_ask_where_that_is_said(folder: Path) -> None:
    gate = await started_gate(folder, LORAPACK_ALLOWED_ORIGINS="*")
    told = await ask(gate, CHAT, method="OPTIONS", headers=ASKS)
    assert (told.status, told.headers["access-control-allow-origin"]) == (204, "*")


def test_without_a_key_pages_of_others_are_refused_even_unread(tmp_path: Path) -> None:
    """A page can send some requests without asking first, though it cannot read the answer."""

    async def run() -> None:
        write_home(tmp_path)
        given = {"LORAPACK_INSECURE_NO_AUTH": "1", "LORAPACK_ALLOWED_ORIGINS": PAGE}
        gate = Gate(Engine(TABLES), read_setting(given, tmp_path))
        await start(gate)
        await settle(gate)
        for page, status in (
            ("https://evil.example", 403), ("null", 403), ("http://[", 403),
            (PAGE, 200), ("http://localhost:3000", 200), ("http://127.0.0.1:8000", 200),
        ):  # fmt: skip
            headers = {"origin": page, "authorization": ""}
            found = await post(gate, COMPLETE, {"model": "tiny", "prompt": "a"}, headers=headers)
            assert found.status == status, page

    asyncio.run(run())


@pytest.mark.parametrize(
    ("origins", "without_key"),
    [
        ("app.example", ""),
        ("https://app.example/", ""),
        ("ftp://x", ""),
        ("*", "1"),
        ("https://", ""),
    ],
)
def test_wrong_list_is_refused_by_name(tmp_path: Path, origins: str, without_key: str) -> None:
    given = write_home(tmp_path) | {"LORAPACK_ALLOWED_ORIGINS": origins}
    if without_key:
        given = {"LORAPACK_ALLOWED_ORIGINS": origins, "LORAPACK_INSECURE_NO_AUTH": "1"}
    with pytest.raises(SettingError, match="LORAPACK_ALLOWED_ORIGINS"):
        read_setting(given, tmp_path)
