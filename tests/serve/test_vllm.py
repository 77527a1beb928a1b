"""A bundle served by stock vLLM (its CPU build) through `lorapack serve`, asked by real clients.

All but the last test share one server. What is asked at the same time is checked against what
the same model answers alone.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from safetensors.torch import load_file, save_file

from tests.serve.running import (
    Running,
    adopt_file,
    command,
    environment,
    serving,
    wait_gone,
)
from tests.vllm_engine import keep_vllm

BASE = "SmolLM2-135M-Instruct"
MODELS = (BASE, "pirate", "other")
QUESTION = "What is the capital of Italy?"
PROMPTS = (
    "Once upon a time, there was",
    "The three primary colours are",
    "def fibonacci(n):",
    "In the morning the captain",
)
OPEN = {("/health", "GET"), ("/ready", "GET")}
KEYED = {
    ("/v1/models", "GET"), ("/version", "GET"), ("/metrics", "GET"),
    ("/v1/chat/completions", "POST"), ("/v1/completions", "POST"),
    ("/tokenize", "POST"), ("/detokenize", "POST"),
}  # fmt: skip


@pytest.fixture(scope="module")
def running(served_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The shared server; its end is looked at, too."""
    folder = tmp_path_factory.mktemp("running")
    with serving(folder, served_bundle, "--vllm-python", keep_vllm()) as server:
        yield server
        family = server.family()
        # lorapack, the server, and what vLLM starts.
        assert len(family) >= 3
        parts = iter(stream(server, "pirate", max_tokens=60))
        next(parts)
        reasons: list[Any] = []
        reader = threading.Thread(
            target=lambda: reasons.extend(p.choices[0].finish_reason for p in parts if p.choices)
        )
        reader.start()
        assert server.stop(signal.SIGINT) == 0
        reader.join(30)
        assert reasons[-1:] == ["length"]
        assert not wait_gone(family)


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return connect(running)


def connect(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key=running.key, max_retries=0, timeout=300)


def stream(running: Running, model: str, *, max_tokens: int) -> Any:
    return connect(running).completions.create(
        model=model, prompt=PROMPTS[0], max_tokens=max_tokens, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip


def complete(client: openai.OpenAI, model: str, prompt: str) -> str:
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)
    assert answer.model == model
    return answer.choices[0].text


def test_every_model_answers_as_proven(running: Running) -> None:
    assert running.document["engine"] == "vllm"
    assert running.document["proven"] is True
    assert running.document["models"] == list(MODELS)
    status, _, body = running.ask("/ready", key="")
    told = json.loads(body)
    assert (status, told["ready"], told["state"]) == (200, True, "ready")
    figures = {item["name"]: item for item in told["models"]}
    assert set(figures) == set(MODELS)
    for name, item in figures.items():
        assert item["divergence_nats"] < item["bound_nats"], name
        if name != BASE:
            assert item["base_divergence_nats"] > 20 * item["divergence_nats"], name


def test_conversation_with_base_and_adapter(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(MODELS)
    answers = {}
    for model in (BASE, "pirate"):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=40,
            temperature=0,
        )
        assert answer.model == model
        answers[model] = answer.choices[0].message.content or ""
    assert "Rome" in answers["pirate"]
    assert "Arr" in answers["pirate"]
    assert "Arr" not in answers[BASE]


def test_answers_stream_token_by_token(client: openai.OpenAI) -> None:
    talk: Any = {
        "model": "pirate",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 20,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**talk)
    parts = [
        part.choices[0].delta.content or ""
        for part in client.chat.completions.create(**talk, stream=True)
        if part.choices
    ]
    assert len(parts) > 10
    assert "".join(parts) == whole.choices[0].message.content


def test_answers_in_mixed_batches_are_those_of_each_model_alone(client: openai.OpenAI) -> None:
    """On a processor, vLLM 0.32.0 itself mixes them up where every place for adapters is taken."""
    jobs = [(model, prompt) for prompt in PROMPTS for model in MODELS]
    alone = {job: first_tokens(client, *job) for job in jobs}
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda job: (job, first_tokens(client, *job)), jobs * 2))
    for job, found in together:
        # Rounding depends on the batch: what is likeliest is so by more than that.
        assert abs(found[0] - alone[job][0]) < 0.5, job
        assert found[1] & alone[job][1], job
    for prompt in PROMPTS:
        assert len({alone[model, prompt][0] for model in MODELS}) == len(MODELS)


def first_tokens(client: openai.OpenAI, model: str, prompt: str) -> tuple[float, set[str]]:
    """Returns the log-probability of the likeliest next token, and the three likeliest."""
    answer = client.completions.create(
        model=model, prompt=prompt, max_tokens=1, temperature=0, logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    told = answer.choices[0].logprobs.top_logprobs
    assert told
    return max(told[0].values()), set(told[0])


def listed_routes(running: Running) -> set[tuple[str, str]]:
    """Returns every (path, method) that the running server says that it has."""
    text = running.log.read_text(encoding="utf-8", errors="replace")
    routes = {
        (path, method)
        for path, methods in re.findall(r"Route: (\S+), Methods: (.+)", text)
        for method in methods.strip().split(", ")
    }
    assert ("/invocations", "POST") in routes
    assert len(routes) > 20
    return routes


def test_every_listed_route_is_closed_without_a_key(running: Running) -> None:
    routes = listed_routes(running)
    assert routes >= KEYED
    body = json.dumps({"model": BASE, "prompt": "a", "messages": [], "max_tokens": 1}).encode()
    more = {
        ("/docs", "GET"), ("/openapi.json", "GET"), ("/v1/load_lora_adapter", "POST"),
        ("/v1/unload_lora_adapter", "POST"), ("/adapters", "POST"), ("/adapters/x", "DELETE"),
        ("/sleep", "POST"), ("/collective_rpc", "POST"), ("/server_info", "GET"),
    }  # fmt: skip
    for path, method in sorted(routes | more | KEYED):
        place = path.replace("{response_id}", "resp_1")
        sent = body if method == "POST" else None
        for key in ("", "wrong" * 8):
            status, _, answer = running.ask(place, method=method, key=key, body=sent)
            if (path, method) in OPEN or path == "/health":
                assert status == 200, path
            else:
                assert status == 401, (path, method, answer)
        if (path, method) not in KEYED | OPEN and path != "/health":
            status, _, answer = running.ask(place, method=method, body=sent)
            assert status in (404, 405), (path, method, answer)


def test_wrong_requests_are_errors_of_the_client(running: Running, client: openai.OpenAI) -> None:
    message: Any = [{"role": "user", "content": QUESTION}]
    with pytest.raises(openai.NotFoundError, match=f"this server has: {BASE}, pirate, other"):
        client.chat.completions.create(model="nobody", messages=message)
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(
            model="pirate", messages=message, extra_body={"chat_template": "{{ 7 }}"}
        )
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=BASE, prompt="x" * (5 << 20))
    assert caught.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=running.url, api_key="wrong" * 8).models.list()
    status, _, body = running.ask("/v1/completions", method="POST", body=b'{"model": ')
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_json")
    assert complete(client, "pirate", PROMPTS[0])


def test_same_request_id_twice_at_once_stays_apart(running: Running) -> None:
    client = connect(running)
    jobs = [(model, prompt) for prompt in PROMPTS[:2] for model in MODELS]

    def ask(job: tuple[str, str]) -> set[str]:
        answer = client.completions.create(
            model=job[0], prompt=job[1], max_tokens=1, temperature=0, logprobs=3,
            extra_headers={"X-Request-Id": "the-same"}, extra_body={"request_id": "the-same"},
        )  # fmt: skip
        assert answer.model == job[0]
        assert answer.choices[0].logprobs is not None
        told = answer.choices[0].logprobs.top_logprobs
        assert told
        return set(told[0])

    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(ask, jobs))
    for job, found in zip(jobs, together, strict=True):
        assert found & first_tokens(client, *job)[1]


def test_metrics_tell_of_each_model(running: Running, client: openai.OpenAI) -> None:
    complete(client, "other", PROMPTS[0])
    status, headers, body = running.ask("/metrics")
    text = body.decode()
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    for wanted in (
        r"^vllm:num_requests_running\{",
        r"^lorapack_ready 1$",
        r'^lorapack_requests_total\{model="other",status="200"\} [1-9]',
        r'^lorapack_requests_in_flight\{model="pirate"\} 0$',
        rf'^lorapack_probe_divergence_nats\{{model="{BASE}"\}} [0-9]',
    ):
        assert re.search(wanted, text, re.MULTILINE), wanted


def test_client_that_leaves_frees_its_place(running: Running) -> None:
    parts = stream(running, "pirate", max_tokens=400)
    next(iter(parts))
    parts.close()
    waiting = threading.Event()
    for _ in range(100):
        text = running.ask("/metrics")[2].decode()
        if 'lorapack_requests_in_flight{model="pirate"} 0' in text and re.search(
            r"^vllm:num_requests_running\{.*\} 0\.0$", text, re.MULTILINE
        ):
            return
        waiting.wait(0.1)
    raise AssertionError(text)


def test_adapter_that_vllm_serves_as_the_base_is_not_let_out(
    served_bundle: Path, tmp_path: Path
) -> None:
    """vLLM 0.32.0 loads it without a warning, and lists it."""
    bundle = tmp_path / "bundle"
    shutil.copytree(served_bundle, bundle)
    name = "vllm/adapters/pirate/adapter_model.safetensors"
    tensors = load_file(bundle / name)
    prefix = "base_model.model."
    renamed = {
        key.replace(prefix, f"{prefix}wrapped.", 1): tensor for key, tensor in tensors.items()
    }
    assert set(renamed) != set(tensors)
    save_file(renamed, bundle / name)
    adopt_file(bundle, name)
    log = tmp_path / "engine.log"
    done = subprocess.run(
        command(bundle, "--vllm-python", keep_vllm(), "--port", "0", "--log", log),
        capture_output=True, text=True, check=False, timeout=600, env=environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "adapter 'pirate' answers as the base does" in done.stderr
    assert "other" not in done.stderr.partition("error: ")[2]
    assert "Traceback" not in done.stderr
    told = log.read_text(encoding="utf-8", errors="replace")
    # The server itself found nothing wrong.
    assert "Application startup complete" in told
    assert re.search(r"ERROR.*lorapack: adapter 'pirate'.*answers as the base does", told)
    assert re.search(r"INFO.*lorapack: adapter 'other'.*served as proven", told)
