"""The gate's programs, started as a container starts them: the starter and the check."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.gate.asgi import KEY
from tests.gate.setting import write_home

GATE = Path(__file__).resolve().parents[2] / "docker" / "gate"
SERVER = """
import json, os, signal, sys, time
def end(number, frame):
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
told = {"pid": os.getpid(), "argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}
print(json.dumps(told), flush=True)
time.sleep(60)
"""


def environment(**further: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(GATE), **further}


def start(*arguments: str, **further: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lorapack_gate.start", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**further),
    )  # fmt: skip


def test_wrong_configuration_ends_at_once_with_one_line(tmp_path: Path) -> None:
    given = write_home(tmp_path)
    (tmp_path / "keys").write_text("short", encoding="utf-8")
    for further, said in (
        ({}, "no API key"),
        (given, "holds a key that is not one"),
        ({"LORAPACK_INSECURE_NO_AUTH": "1"}, "this machine only"),
        ({"LORAPACK_API_KEY_FILE": "/nowhere/key"}, "cannot be read"),
    ):
        process = start("--host", "0.0.0.0", LORAPACK_HOME=str(tmp_path), **further)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (78, "")
        assert err.startswith("lorapack: error: ")
        assert said in err
        assert err.count("\n") == 1


def test_starter_becomes_the_server(tmp_path: Path) -> None:
    """A package that takes vLLM's place shows what vLLM is given."""
    place = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    (place / "api_server.py").write_text(SERVER, encoding="utf-8")
    given = write_home(tmp_path / "home")
    # A stray module beside the configuration is not what Python imports.
    (tmp_path / "home" / "json.py").write_text("raise SystemExit(99)", encoding="utf-8")
    process = start(
        "--port", "1",
        LORAPACK_HOME=str(tmp_path / "home"),
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
        LORAPACK_PARENT=str(os.getpid()),
        **{**given, "PYTHONPATH": f"{GATE}{os.pathsep}{tmp_path / 'site'}"},
    )  # fmt: skip
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["pid"] == process.pid
    assert told["argv"] == ["--config", "serve.yaml", "--port", "1"]
    assert told["cwd"] == str(tmp_path / "home")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in told["env"]
    assert KEY not in json.dumps(told)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 7
    assert "warning: vLLM is not installed here" in err


def test_starter_does_not_outlive_a_parent_that_is_gone(tmp_path: Path) -> None:
    given = write_home(tmp_path)
    process = start(LORAPACK_HOME=str(tmp_path), LORAPACK_PARENT="1", **given)
    process.communicate(timeout=20)
    assert process.returncode == 78


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    """A server on this machine that answers every path alike; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    asked: list[str] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked in (["/ready"], ["/health"])


@pytest.mark.parametrize(
    ("status", "body", "what", "code", "said"),
    [
        (200, b'{"ready": true, "reason": null}', "ready", 0, ""),
        (200, b"", "live", 0, ""),
        (503, b'{"ready": false, "reason": "adapter x"}', "ready", 1, "adapter x\n"),
        (503, b"", "live", 1, "status 503\n"),
        (503, b"[]", "ready", 1, "status 503\n"),
    ],
)
def test_check_tells_how_the_server_is(
    status: int, body: bytes, what: str, code: int, said: str
) -> None:
    with answering(status, body) as port:
        done = check(what, "--port", str(port))
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


def test_check_of_nobody_fails() -> None:
    done = check("--port", "1")
    assert done.returncode == 1
    assert done.stdout.startswith("no answer: ")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorapack_gate.check", *arguments],
        capture_output=True, text=True, check=False, timeout=20, env=environment(),
    )  # fmt: skip
