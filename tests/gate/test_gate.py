"""Doors, keys, limits and the probe of the gate, request by request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lorapack_gate import Gate
from lorapack_gate.door import DOORS
from lorapack_gate.setting import read_setting

from tests.gate.asgi import KEY, METRICS_KEY, OTHER_KEY, ask, bearer, post
from tests.gate.engine import Engine
from tests.gate.setting import (
    BASE,
    TABLES,
    expected_document,
    gate_document,
    model,
    settle,
    start,
    started_gate,
    write_home,
)

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
CLOSED = (
    "/", "/docs", "/openapi.json", "/redoc", "/invocations", "/ping", "/load", "/v1/responses",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/v1/messages", "/sleep",
    "/v1/models/", "//v1/models", "/v1/../v1/models", "/V1/models", "/metrics/", "/health/",
    "/ready/x", "/inference/v1/generate", "/collective_rpc", "/kv_event_sources",
)  # fmt: skip

WRONG_KEYS: tuple[dict[str, str], ...] = (
    {},
    bearer("wrong" * 8),
    {"authorization": KEY},
    {"authorization": f"Basic {KEY}"},
    bearer(METRICS_KEY),
    bearer(""),
)


def running(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """Runs an asynchronous test to its end."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path / "home"), 30))

    run.__name__ = test.__name__
    return run


@running
async def test_only_health_and_readiness_are_open(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine)
    engine.asked.clear()
    for path in (*CLOSED, *DOORS):
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
            for headers in WRONG_KEYS:
                found = await ask(gate, path, method=method, headers=headers)
                is_open = path in ("/health", "/ready")
                metrics = path == "/metrics" and headers == bearer(METRICS_KEY)
                if not is_open and not metrics:
                    assert (found.status, found.code) == (401, "invalid_api_key"), (path, method)
                    assert found.headers["www-authenticate"] == "Bearer"
    # Nothing of all that came through to the engine, but what is open to everybody.
    assert {path for path, _ in engine.asked} == {"/health", "/metrics"}


@running
async def test_closed_paths_stay_closed_with_a_key(folder: Path) -> None:
    gate = await started_gate(folder)
    for path in CLOSED:
        found = await ask(gate, path, headers=bearer())
        assert (found.status, found.code) == (404, "unknown_path"), path
    assert (await ask(gate, CHAT, headers=bearer())).status == 405
    assert (await ask(gate, "/metrics", method="POST", headers=bearer())).code == (
        "method_not_allowed"
    )
    for key in (KEY, OTHER_KEY):
        assert (await ask(gate, "/v1/models", headers=bearer(key))).status == 200


@running
async def test_two_authorizations_are_none(folder: Path) -> None:
    gate = await started_gate(folder)
    scope_headers = [(b"authorization", f"Bearer {KEY}".encode())] * 2
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/version", "headers": scope_headers}
    await gate(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 401


@running
async def test_websockets_are_closed_before_they_open(folder: Path) -> None:
    gate = await started_gate(folder)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await gate({"type": "websocket", "path": "/v1/realtime"}, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@running
async def test_without_a_key_only_this_machine_is_answered(folder: Path) -> None:
    write_home(folder)
    setting = read_setting({"LORAPACK_INSECURE_NO_AUTH": "1"}, folder)
    gate = Gate(Engine(TABLES), setting)
    await start(gate)
    assert (await ask(gate, "/v1/models")).status == 200
    assert (await ask(gate, "/v1/models", peer="::1", headers={"host": "[::1]:8"})).status == 200
    for options in ({"peer": "10.1.2.3"}, {"headers": {"host": "evil.example:8000"}}):
        found = await ask(gate, "/v1/models", **options)  # type: ignore[arg-type]
        assert (found.status, found.code) == (403, "not_local")


@running
async def test_request_passes_untouched_and_streams(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine)
    sent = b'{ "model": "tiny",  "messages": [], "stream": true, "n": 1.50 }'
    found = await post(gate, CHAT, sent)
    assert found.status == 200
    assert engine.asked[-1] == (CHAT, json.loads(sent))
    # Part by part, as the engine sent it.
    assert [bool(part) for part in found.parts] == [True, True, False]


@running
async def test_adapter_gets_its_own_template_and_ends(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine)
    given = {"model": "pirate", "messages": [{"role": "user", "content": "ö"}]}
    found = await post(gate, CHAT, given | {"stop_token_ids": [3]})
    asked = engine.asked[-1][1]
    assert asked == {**given, "stop_token_ids": [3, 7], "chat_template": "{{ 'Arr' }}"}
    headers = json.loads(found.body.splitlines()[1])
    assert int(headers["content-length"]) == len(json.dumps(asked))
    await post(gate, COMPLETE, {"model": "pirate", "prompt": "a"})
    assert engine.asked[-1][1] == {"model": "pirate", "prompt": "a", "stop_token_ids": [7]}
    await post(gate, COMPLETE, {"model": "pirate", "prompt": "a", "ignore_eos": True})
    assert "stop_token_ids" not in engine.asked[-1][1]
    await post(gate, "/tokenize", given)
    assert engine.asked[-1][1] == {**given, "chat_template": "{{ 'Arr' }}"}


@running
async def test_wrong_requests_are_told_why(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine, LORAPACK_MAX_BODY_BYTES="2000")
    count = len(engine.asked)
    talk: dict[str, Any] = {"model": "tiny", "messages": []}
    for payload, status, code in (
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 1900, 400, "invalid_json"),
        ([], 400, "invalid_json"),
        ({"messages": []}, 400, "missing_model"),
        ({"model": None}, 400, "missing_model"),
        ({"model": "nobody", "messages": []}, 404, "model_not_found"),
        ({"model": ["tiny"]}, 404, "model_not_found"),
        ({"model": "x" * 1900}, 404, "model_not_found"),
        ({**talk, "chat_template": "{{ 1 }}"}, 400, "chat_template_refused"),
        ({**talk, "chat_template_kwargs": {"chat_template": ""}}, 400, "chat_template_refused"),
        ({"model": "poet", "messages": []}, 400, "no_chat_template"),
        ({"model": "pirate", "messages": [], "stop_token_ids": 3}, 400, "invalid_value"),
        ({**talk, "user": "x" * 2000}, 413, "request_too_large"),
    ):
        found = await post(gate, CHAT, payload)
        assert (found.status, found.code) == (status, code), payload
    assert len(engine.asked) == count
    told = (await post(gate, COMPLETE, {"model": "nobody"})).json["error"]
    assert told["message"] == (
        "the model 'nobody' does not exist; this server has: tiny, pirate, poet"
    )
    assert told["param"] == "model"


@running
async def test_body_without_a_length_is_bounded_too(folder: Path) -> None:
    gate = await started_gate(folder, LORAPACK_MAX_BODY_BYTES="2000")
    found = await ask(gate, CHAT, method="POST", headers=bearer(), parts=[b"x" * 999] * 1000)
    assert (found.status, found.code) == (413, "request_too_large")
    huge = {**bearer(), "content-length": "9" * 40}
    assert (await ask(gate, CHAT, method="POST", headers=huge)).status == 413


@running
async def test_too_many_at_once_are_told_to_wait(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine, LORAPACK_MAX_CONCURRENCY="2")
    engine.held.clear()
    talk = {"model": "tiny", "messages": []}
    waiting = [asyncio.create_task(post(gate, CHAT, talk)) for _ in range(2)]
    await asyncio.sleep(0.01)
    found = await post(gate, CHAT, talk)
    assert (found.status, found.code) == (429, "too_many_requests")
    assert found.headers["retry-after"] == "1"
    engine.held.set()
    assert [(await task).status for task in waiting] == [200, 200]
    assert (await post(gate, CHAT, talk)).status == 200


@running
async def test_client_that_leaves_early_frees_its_place(folder: Path) -> None:
    engine = Engine(TABLES)
    gate = await started_gate(folder, engine, LORAPACK_MAX_CONCURRENCY="1")
    left = asyncio.Event()
    left.set()
    found = await ask(gate, CHAT, method="POST", headers=bearer(), parts=[], leaves=left)
    assert found.status == 0
    talk = {"model": "tiny", "messages": []}
    assert (await post(gate, CHAT, talk)).status == 200
    # One that is cancelled while the engine works on it does too.
    engine.held.clear()
    working = asyncio.create_task(post(gate, CHAT, talk))
    await asyncio.sleep(0.01)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    engine.held.set()
    assert engine.cancelled == 1
    assert (await post(gate, CHAT, talk)).status == 200


@running
async def test_ready_tells_the_figures(folder: Path) -> None:
    gate = await started_gate(folder)
    found = await ask(gate, "/ready")
    assert found.status == 200
    assert (found.json["ready"], found.json["proven"]) == (True, True)
    figures = {item["name"]: item for item in found.json["models"]}
    assert figures["tiny"]["base_divergence_nats"] is None
    assert figures["pirate"]["divergence_nats"] < 1e-6
    assert figures["pirate"]["base_divergence_nats"] > 0.5
    assert all(item["passed"] for item in figures.values())


@running
async def test_adapter_served_as_the_base_keeps_everything_closed(folder: Path) -> None:
    gate = await started_gate(folder, Engine({**TABLES, "poet": BASE}))
    found = await ask(gate, "/ready")
    assert found.status == 503
    assert found.json["state"] == "failed"
    assert "adapter 'poet' answers as the base does" in found.json["reason"]
    assert "pirate" not in found.json["reason"]
    for name in TABLES:
        refused = await post(gate, COMPLETE, {"model": name, "prompt": "a"})
        assert (refused.status, refused.code) == (503, "not_ready")
        assert "poet" in refused.json["error"]["message"]
    assert (await ask(gate, "/health")).status == 200
    metrics = (await ask(gate, "/metrics", headers=bearer(METRICS_KEY))).body.decode()
    assert "lorapack_ready 0" in metrics


@running
async def test_unproven_bundle_is_ready_only_if_told(folder: Path) -> None:
    for allowed, status in (("", 503), ("1", 200)):
        home = folder / f"home{allowed}"
        given = write_home(home, gate={**gate_document(), "expected": None})
        setting = read_setting(given | {"LORAPACK_ALLOW_UNPROVEN": allowed}, home)
        gate = Gate(Engine(TABLES), setting)
        await start(gate)
        await settle(gate)
        found = await ask(gate, "/ready")
        assert (found.status, found.json["proven"]) == (status, False)
        assert allowed or "LORAPACK_ALLOW_UNPROVEN=1" in found.json["reason"]


@running
async def test_served_name_that_the_proof_leaves_out_fails(folder: Path) -> None:
    document = gate_document()
    document["models"].append(model("stranger"))
    given = write_home(folder, gate=document)
    gate = Gate(Engine(TABLES), read_setting(given, folder))
    await start(gate)
    await settle(gate)
    assert "'stranger' is not in the proof" in (await ask(gate, "/ready")).json["reason"]


@running
async def test_engine_that_answers_nonsense_or_breaks_fails(folder: Path) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("out of memory")

    async def nonsense(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    given = write_home(folder)
    for app, reason in ((broken, "RuntimeError: out of memory"), (nonsense, "without log-prob")):
        gate = Gate(app, read_setting(given, folder))
        # Without a lifespan, the first request starts the probe.
        assert (await ask(gate, "/ready")).json["state"] == "starting"
        assert gate._probing is not None
        await asyncio.wait({gate._probing})
        await asyncio.sleep(0)
        found = await ask(gate, "/ready")
        assert found.status == 503
        assert reason in found.json["reason"]


@running
async def test_nothing_is_answered_before_the_probe_is_done(folder: Path) -> None:
    gate = await started_gate(folder, probed=False)
    found = await post(gate, COMPLETE, {"model": "tiny", "prompt": "a"})
    assert (found.status, found.code) == (503, "not_ready")
    assert found.headers["retry-after"] == "1"
    await settle(gate)
    assert (await post(gate, COMPLETE, {"model": "tiny", "prompt": "a"})).status == 200


@running
async def test_metrics_are_the_engines_and_the_gates(folder: Path) -> None:
    gate = await started_gate(folder)
    await post(gate, COMPLETE, {"model": "pirate", "prompt": "a"})
    await post(gate, COMPLETE, {"model": "nobody", "prompt": "a"})
    text = (await ask(gate, "/metrics", headers=bearer(METRICS_KEY))).body.decode()
    for line in (
        "vllm:num_requests_running 0.0",
        "lorapack_ready 1",
        'lorapack_requests_total{model="pirate",status="200"} 1',
        'lorapack_requests_in_flight{model="pirate"} 0',
        'lorapack_refused_total{reason="model_not_found"} 1',
        'lorapack_first_byte_seconds_bucket{model="pirate",le="+Inf"} 1',
        'lorapack_duration_seconds_count{model="pirate"} 1',
        'lorapack_probe_bound_nats{model="poet"} 0.05',
    ):
        assert line in text.splitlines()


@running
async def test_what_is_in_flight_is_finished_before_the_engine_ends(folder: Path) -> None:
    engine = Engine(TABLES)
    ended: list[float] = []

    class Client:
        def shutdown(self, timeout: float) -> str:
            ended.append(timeout)
            return "ended"

    class State:
        engine_client = Client()

    class Host:
        state = State()

    given = write_home(folder)
    gate = Gate(engine, read_setting(given, folder))
    gate._drain.hook(Host)
    await start(gate)
    await settle(gate)
    engine.held.clear()
    working = asyncio.create_task(post(gate, CHAT, {"model": "tiny", "messages": []}))
    await asyncio.sleep(0.01)
    ending = asyncio.create_task(asyncio.to_thread(Host.state.engine_client.shutdown, timeout=3))
    await asyncio.sleep(0.2)
    assert not ended
    late = await post(gate, CHAT, {"model": "tiny", "messages": []})
    assert (late.status, late.code) == (503, "stopping")
    assert (await ask(gate, "/ready")).json["state"] == "stopping"
    engine.held.set()
    assert (await working).status == 200
    assert await ending == "ended"
    assert ended == [3]


def test_expected_document_names_every_served_model() -> None:
    names = [item["name"] for item in gate_document()["models"]]
    assert [item["name"] for item in expected_document()["models"]] == names


@pytest.mark.parametrize("path", DOORS)
def test_doors_are_plain_paths(path: str) -> None:
    assert path.startswith("/")
    assert not path.endswith("/")
