"""llama.cpp as an endpoint: the real engine on a tiny random model, asked by OpenAI's client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from packager.serve.request import Endpoint
from packager.serve.snippet import curl_command, openai_script, render_snippets
from tests.serve.running import (
    Running,
    adopt_file,
    command,
    copy_bundle,
    environment,
    serving,
    wait_gone,
)

TALK = [{"role": "user", "content": "春眠不觉晓"}]


@pytest.fixture(scope="module")
def running(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("running")
    with serving(folder, tiny_bundle, "--engine", "llama.cpp") as server:
        yield server


@pytest.fixture
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=running.url, api_key=running.key, max_retries=0)


def test_document_tells_what_is_served(running: Running) -> None:
    key_file = Path(running.document["key_file"])
    assert running.document == {
        "schema_version": 1,
        "url": running.url,
        "engine": "llama.cpp",
        "models": ["tiny"],
        "chats": ["tiny"],
        "key_file": str(key_file),
        "proven": False,
    }
    assert key_file.stat().st_mode & 0o077 == 0
    assert key_file.parent.stat().st_mode & 0o077 == 0
    assert running.key not in " ".join(word for p in running.family() for word in p.cmdline())


def test_openai_client_is_answered(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    whole = client.chat.completions.create(
        model="tiny", messages=TALK, max_tokens=8, temperature=0, seed=1
    )
    assert whole.model == "tiny"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 8
    parts = client.chat.completions.create(
        model="tiny", messages=TALK, max_tokens=8, temperature=0, seed=1, stream=True
    )
    pieces = [part.choices[0].delta.content or "" for part in parts if part.choices]
    assert len(pieces) > 2
    assert "".join(pieces) == (whole.choices[0].message.content or "")
    text = client.completions.create(model="tiny", prompt="The quick", max_tokens=4)
    assert text.choices[0].finish_reason in ("length", "stop")


def test_wrong_requests_are_errors_of_the_client(running: Running, client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.NotFoundError, match="'nobody' does not exist; this server has: tiny"
    ):
        client.chat.completions.create(model="nobody", messages=TALK)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[{"role": 3}])  # type: ignore[list-item]
    # It has survived that.
    client.chat.completions.create(model="tiny", messages=TALK, max_tokens=2)
    stranger = openai.OpenAI(base_url=running.url, api_key="wrong" * 8, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_llama_cpps_own_server_is_closed_too(running: Running) -> None:
    """It listens on this machine: its port answers nobody without the key that only we have."""
    ports = {
        connection.laddr.port
        for process in running.family()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    own = int(running.root.rsplit(":", 1)[1])
    assert own in ports
    assert len(ports) == 2
    for port in ports - {own}:
        other = Running(
            running.process,
            {"url": f"http://127.0.0.1:{port}/v1"},
            running.key,
            running.errors,
            running.log,
        )
        for path, method in (
            ("/v1/chat/completions", "POST"), ("/completion", "POST"), ("/slots", "GET"),
            ("/lora-adapters", "POST"), ("/props", "GET"), ("/tokenize", "POST"),
        ):  # fmt: skip
            assert other.ask(path, method=method, body=b"{}")[0] == 401, path


def test_client_that_leaves_stops_the_work(running: Running, client: openai.OpenAI) -> None:
    parts = client.chat.completions.create(
        model="tiny", messages=TALK, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(parts))
    parts.close()
    answer = client.chat.completions.create(model="tiny", messages=TALK, max_tokens=2)
    assert answer.choices


def test_snippets_run_as_they_are_printed(running: Running) -> None:
    fields = {**running.document, "key_file": Path(running.document["key_file"])}
    del fields["schema_version"]
    endpoint = Endpoint(**{**fields, "models": ("tiny",), "chats": ("tiny",)})
    text = render_snippets(endpoint)
    curl, script = curl_command(endpoint, "tiny"), openai_script(endpoint, "tiny")
    assert curl in text
    assert script in text
    assert running.key not in text
    export = next(each for each in text.splitlines() if each.startswith("export "))
    assert shutil.which("curl")
    for line in (curl, f"{sys.executable} - <<'END'\n{script}\nEND"):
        done = subprocess.run(
            ["bash", "-c", f"{export}\n{line}"],
            capture_output=True, text=True, check=False, timeout=60, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stdout[:20]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_finishes_what_is_answered_and_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, number: int
) -> None:
    with serving(tmp_path, tiny_bundle, "--engine", "llama.cpp", "--insecure-no-auth") as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        assert server.key == ""
        family = server.family()
        assert len(family) == 2
        parts = client.chat.completions.create(
            model="tiny", messages=TALK, max_tokens=300, stream=True, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        stream = iter(parts)
        next(stream)
        reasons: list[str | None] = []
        reader = threading.Thread(
            target=lambda: reasons.extend(p.choices[0].finish_reason for p in stream if p.choices)
        )
        reader.start()
        assert server.stop(number) == 0
        reader.join(10)
        assert reasons[-1] == "length"
        assert "stopped" in server.errors.read_text(encoding="utf-8")
        assert not wait_gone(family)


def test_killed_parent_takes_the_server_along(tiny_bundle: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_bundle, "--engine", "llama.cpp") as server:
        family = server.family()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert not wait_gone(family)


def test_port_that_is_taken_is_told(running: Running, tiny_bundle: Path) -> None:
    port = running.root.rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "packager", "serve", os.fspath(tiny_bundle), "--engine", "llama.cpp",
         "--port", port],
        capture_output=True, text=True, check=False, timeout=120, env=environment(),
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_are_asked_what_the_proof_asked(twin_bundle: Path, tmp_path: Path) -> None:
    with serving(tmp_path, twin_bundle, "--engine", "llama.cpp") as server:
        assert server.document["models"] == ["first", "second"]
        assert server.document["proven"] is True
        told = json.loads(server.ask("/ready", key="")[2])
        figures = {item["name"]: item for item in told["models"]}
        assert set(figures) == {"first", "second"}
        for item in figures.values():
            assert item["kind"] == "merged"
            assert item["divergence_nats"] < item["bound_nats"]
            assert item["divergence_nats"] < item["base_divergence_nats"] / 10
        odd = {"model": "first", "prompt": "text", "logprob_token_ids": [1]}
        status, _, body = server.ask(
            "/v1/completions", method="POST", body=json.dumps(odd).encode()
        )
        assert (status, json.loads(body)["error"]["param"]) == (400, "prompt")


def test_file_with_other_weights_is_not_let_out(twin_bundle: Path, tmp_path: Path) -> None:
    """The manifest is right, the file loads and talks; only asking shows that it is another."""
    bundle = copy_bundle(twin_bundle, tmp_path / "bundle")
    names = [f"ollama/{name}/{name}-Q8_0.gguf" for name in ("first", "second")]
    for name, other in zip(names, reversed(names), strict=True):
        shutil.copyfile(twin_bundle / other, bundle / name)
        adopt_file(bundle, name)
    done = subprocess.run(
        command(bundle, "--engine", "llama.cpp", "--port", "0"),
        capture_output=True, text=True, check=False, timeout=120, env=environment(),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    for name in ("first", "second"):
        assert f"merged model '{name}' " in done.stderr.partition("error: ")[2]
    assert "Traceback" not in done.stderr
