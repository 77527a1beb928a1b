"""Two real servers of one bundle: what the first one hands on, and what it says of the other."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from lorapack_gate import Gate
from lorapack_gate.setting import read_setting

from tests.gate.asgi import KEY, METRICS_KEY, OTHER_KEY, bearer
from tests.gate.server import (
    WHOLE,
    SlowEngine,
    free_port,
    front_gate,
    front_server,
    listening,
    whole_server,
)
from tests.gate.setting import BASE, POET, TABLES, write_home

CHAT = "/v1/chat/completions"
TALK = {"model": WHOLE, "messages": [{"role": "user", "content": "ö"}], "stream": True}


@pytest.fixture
def engine() -> SlowEngine:
    """What is behind the neighbour's gate."""
    return SlowEngine({WHOLE: POET})


@pytest.fixture
def front(tmp_path: Path, engine: SlowEngine) -> Iterator[httpx.Client]:
    """A client of the first server, which is ready, with the right key."""
    with (
        whole_server(tmp_path / "whole", engine) as url,
        front_server(tmp_path / "front", whole=url) as first,
        httpx.Client(base_url=first, headers=bearer(), timeout=10) as client,
    ):
        wait_until(lambda: client.get("/ready").status_code == 200)
        yield client


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    latest = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.05)


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def test_request_is_handed_on_as_it_came_and_streams_back(
    front: httpx.Client, engine: SlowEngine
) -> None:
    engine.go_on.clear()
    sent = json.dumps(TALK, ensure_ascii=False).encode()
    headers = {"x-request-id": "of-the-client", "x-forwarded-for": "8.8.8.8", "connection": "x-own",
               "x-own": "for this hop"}  # fmt: skip
    with front.stream("POST", CHAT, content=sent, headers=headers) as answer:
        lines = answer.iter_lines()
        # The first part is here while the rest is still to be made.
        assert next(lines) == "data: 0"
        assert answer.headers["content-type"] == "text/event-stream"
        assert len(answer.headers.get_list("date")) == 1
        engine.go_on.set()
        assert [line for line in lines if line] == ["data: 1", "data: 2"]
    assert engine.asked[-1] == (CHAT, sent)
    told = dict(engine.headers)
    assert told[b"authorization"] == f"Bearer {KEY}".encode()
    assert told[b"x-request-id"] == b"of-the-client"
    assert told[b"content-length"] == str(len(sent)).encode()
    assert b"x-own" not in told
    assert b"x-forwarded-for" not in told


def test_own_models_are_answered_here(front: httpx.Client, engine: SlowEngine) -> None:
    count = len(engine.asked)
    assert front.post(CHAT, json={**TALK, "model": "tiny"}).status_code == 200
    assert len(engine.asked) == count


def test_client_that_leaves_stops_the_neighbours_work(
    front: httpx.Client, engine: SlowEngine
) -> None:
    engine.go_on.clear()
    with front.stream("POST", CHAT, json=TALK) as answer:
        # Kept: httpx closes the connection with an iterator that nobody holds.
        lines = answer.iter_lines()
        assert next(lines) == "data: 0"
        assert not engine.left.is_set()
    assert engine.left.wait(5)
    flight = f'lorapack_requests_in_flight{{model="{WHOLE}"}} 0'
    wait_until(lambda: flight in front.get("/metrics").text)


def test_every_name_is_listed_and_known(front: httpx.Client) -> None:
    listed = front.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == [*TABLES, WHOLE]
    # As the neighbour itself lists it.
    assert listed[-1]["max_model_len"] == 64
    refused = front.post(CHAT, json={"model": "nobody", "messages": []})
    assert refused.status_code == 404
    assert f"this server has: tiny, pirate, poet, {WHOLE}" in refused.json()["error"]["message"]


def test_errors_of_the_neighbour_come_through(front: httpx.Client) -> None:
    refused = front.post(CHAT, json={**TALK, "chat_template": "{{ 1 }}"})
    assert (refused.status_code, code_of(refused)) == (400, "chat_template_refused")


def test_ready_and_metrics_tell_of_both(front: httpx.Client) -> None:
    front.post(CHAT, json=TALK)
    told = front.get("/ready").json()
    assert (told["ready"], told["proven"], told["neighbours"]) == (True, True, {WHOLE: True})
    figures = {item["name"]: item for item in told["models"]}
    assert set(figures) == {*TABLES, WHOLE}
    assert figures[WHOLE]["kind"] == "merged"
    assert figures[WHOLE]["divergence_nats"] < 1e-6
    assert figures[WHOLE]["base_divergence_nats"] > 0.5
    wanted = {
        f'lorapack_neighbour_ready{{neighbour="{WHOLE}"}} 1',
        f'lorapack_requests_total{{model="{WHOLE}",status="200"}} 1',
        f'lorapack_first_byte_seconds_count{{model="{WHOLE}"}} 1',
    }

    def figured() -> bool:
        text = front.get("/metrics", headers=bearer(METRICS_KEY)).text
        return wanted <= set(text.splitlines())

    # A request is counted when it has ended, just after its client has all of the answer.
    wait_until(figured)


def test_wrong_key_goes_no_further(front: httpx.Client, engine: SlowEngine) -> None:
    count = len(engine.asked)
    for key in ("wrong" * 8, METRICS_KEY):
        refused = front.post(CHAT, json=TALK, headers=bearer(key))
        assert (refused.status_code, code_of(refused)) == (401, "invalid_api_key")
    assert len(engine.asked) == count
    assert front.post(CHAT, json=TALK, headers=bearer(OTHER_KEY)).status_code == 200


def test_key_that_the_neighbour_does_not_know_is_refused_by_it(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("a-key-of-the-neighbour-alone\n", encoding="ascii")
    with (
        whole_server(tmp_path / "whole", LORAPACK_API_KEY_FILE=str(tmp_path / "other")) as url,
        front_server(tmp_path / "front", whole=url) as first,
        httpx.Client(base_url=first, headers=bearer()) as client,
    ):
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.post(CHAT, json=TALK).status_code == 401
        # Its name is known all the same.
        assert client.get("/v1/models").json()["data"][-1]["id"] == WHOLE


def test_limits_hold_before_anything_is_handed_on(tmp_path: Path, engine: SlowEngine) -> None:
    with whole_server(tmp_path / "whole", engine) as url:
        given = write_home(tmp_path / "front", gate=front_gate(whole=url))
        given |= {"LORAPACK_MAX_BODY_BYTES": "2000", "LORAPACK_MAX_CONCURRENCY": "1"}
        gate = Gate(SlowEngine(TABLES), read_setting(given, tmp_path / "front"))
        with (
            listening(gate) as first,
            httpx.Client(base_url=first, headers=bearer(), timeout=10) as client,
        ):
            wait_until(lambda: client.get("/ready").status_code == 200)
            count = len(engine.asked)
            refused = client.post(CHAT, json={**TALK, "user": "x" * 3000})
            assert (refused.status_code, code_of(refused)) == (413, "request_too_large")
            assert len(engine.asked) == count
            engine.go_on.clear()
            with client.stream("POST", CHAT, json=TALK) as answer:
                # Kept, since what nobody holds any more is closed.
                lines = answer.iter_lines()
                assert next(lines) == "data: 0"
                for name in (WHOLE, "tiny"):
                    refused = client.post(CHAT, json={**TALK, "model": name})
                    assert (refused.status_code, code_of(refused)) == (429, "too_many_requests")
                engine.go_on.set()


def test_neighbour_that_is_down_is_told_by_name(tmp_path: Path) -> None:
    with (
        front_server(tmp_path / "front", whole=f"http://127.0.0.1:{free_port()}") as first,
        httpx.Client(base_url=first, headers=bearer()) as client,
    ):
        wait_until(lambda: client.get("/ready").json()["state"] == "waiting")
        told = client.get("/ready")
        assert (told.status_code, told.json()["proven"]) == (503, False)
        assert f"neighbour '{WHOLE}' is not ready: it cannot be reached at" in told.json()["reason"]
        refused = client.post(CHAT, json=TALK)
        assert (refused.status_code, code_of(refused)) == (503, "neighbour_unreachable")
        assert refused.headers["retry-after"] == "1"
        assert client.post(CHAT, json={**TALK, "model": "tiny"}).status_code == 200
        assert client.get("/v1/models").json()["data"][-1]["id"] == WHOLE
        lines = client.get("/metrics").text.splitlines()
        assert f'lorapack_neighbour_ready{{neighbour="{WHOLE}"}} 0' in lines
        assert f'lorapack_requests_total{{model="{WHOLE}",status="503"}} 1' in lines


def test_neighbour_that_is_lost_takes_only_its_own_models_along(tmp_path: Path) -> None:
    with ExitStack() as neighbour:
        url = neighbour.enter_context(whole_server(tmp_path / "whole", SlowEngine({WHOLE: POET})))
        with (
            front_server(tmp_path / "front", whole=url) as first,
            httpx.Client(base_url=first, headers=bearer()) as client,
        ):
            wait_until(lambda: client.get("/ready").status_code == 200)
            neighbour.close()
            wait_until(lambda: client.get("/ready").json()["neighbours"] == {WHOLE: False})
            told = client.get("/ready")
            assert (told.status_code, told.json()["state"]) == (200, "ready")
            assert f"neighbour '{WHOLE}' is not ready" in told.json()["reason"]
            refused = client.post(CHAT, json=TALK)
            assert (refused.status_code, code_of(refused)) == (503, "neighbour_unreachable")
            assert client.post(CHAT, json={**TALK, "model": "tiny"}).status_code == 200


def test_neighbour_that_answers_as_the_base_keeps_the_bundle_unready(tmp_path: Path) -> None:
    with (
        whole_server(tmp_path / "whole", SlowEngine({WHOLE: BASE})) as url,
        front_server(tmp_path / "front", whole=url) as first,
        httpx.Client(base_url=first, headers=bearer()) as client,
    ):
        wait_until(lambda: "probe" not in client.get("/ready").json()["reason"]
                   and "answers as the base" in client.get("/ready").json()["reason"])  # fmt: skip
        told = client.get("/ready")
        assert told.status_code == 503
        assert f"merged model '{WHOLE}' answers as the base does" in told.json()["reason"]
        refused = client.post(CHAT, json=TALK)
        assert (refused.status_code, code_of(refused)) == (503, "not_ready")


def test_stranger_at_the_neighbours_address_is_no_neighbour(tmp_path: Path) -> None:
    with (
        listening(SlowEngine({})) as stranger,
        front_server(tmp_path / "front", whole=stranger) as first,
    ):
        wait_until(lambda: httpx.get(f"{first}/ready").json()["state"] == "waiting")
        assert "is no server of a bundle" in httpx.get(f"{first}/ready").json()["reason"]


def test_answer_that_breaks_off_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    class Breaking(SlowEngine):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] != CHAT:
                await super().__call__(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

    with (
        whole_server(tmp_path / "whole", Breaking({WHOLE: POET})) as url,
        front_server(tmp_path / "front", whole=url) as first,
        httpx.Client(base_url=first, headers=bearer()) as client,
    ):
        wait_until(lambda: client.get("/ready").status_code == 200)
        with client.stream("POST", CHAT, json=TALK) as answer:
            parts = answer.iter_raw()
            assert next(parts) == b"half"
            with pytest.raises(httpx.RemoteProtocolError):
                next(parts)


def test_what_is_handed_on_is_waited_for_at_the_end(tmp_path: Path, engine: SlowEngine) -> None:
    class State:
        class engine_client:  # noqa: N801 - vLLM's name
            @staticmethod
            def shutdown(timeout: float) -> None:
                ended.append(timeout)

    class Host:
        state = State()

    ended: list[float] = []
    with whole_server(tmp_path / "whole", engine) as url:
        given = write_home(tmp_path / "front", gate=front_gate(whole=url))
        gate = Gate(SlowEngine(TABLES), read_setting(given, tmp_path / "front"))
        gate._drain.hook(Host)
        with (
            listening(gate) as first,
            httpx.Client(base_url=first, headers=bearer(), timeout=10) as client,
        ):
            wait_until(lambda: client.get("/ready").status_code == 200)
            engine.go_on.clear()
            with client.stream("POST", CHAT, json=TALK) as answer:
                lines = answer.iter_lines()
                next(lines)
                ending = threading.Thread(target=Host.state.engine_client.shutdown, args=(3,))
                ending.start()
                wait_until(lambda: client.get("/ready").json()["state"] == "stopping")
                refused = client.post(CHAT, json=TALK)
                assert (refused.status_code, code_of(refused)) == (503, "stopping")
                assert not ended
                engine.go_on.set()
                assert [line for line in lines if line] == ["data: 1", "data: 2"]
            ending.join(5)
            assert ended == [3]
