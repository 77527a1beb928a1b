"""The CPU image of a real bundle, really built and run as compose starts it.

Its own user, without any right, all files for reading only; a second container serves a merged
model, which the first one passes requests on to. Run by `just test-container`.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.buildah import confined, image_config, mounted, run
from tests.container.served import (
    BASE,
    MERGED,
    Keys,
    ask,
    check_answers,
    check_doors,
    check_proven,
    talk,
    wait_ready,
)

pytestmark = pytest.mark.container

STOP_SECONDS = 120


@pytest.fixture
def container(image: str) -> Iterator[str]:
    name = run("buildah", "from", image)
    yield name
    run("buildah", "rm", name)


def in_container(container: str, *command: str) -> str:
    return run("buildah", "run", "--isolation=chroot", "--network=host", container, "--", *command)


@contextmanager
def serving(
    container: str, image: str, keys: Keys, port: int, log: Path, **variables: str
) -> Iterator[psutil.Popen]:
    """Runs the image's own entry point and arguments, on another port."""
    config = image_config(image)
    command = [*config["Entrypoint"], *config["Cmd"]]
    command[command.index("--port") + 1] = str(port)
    cache = log.with_name(f"cache-{port}")
    cache.mkdir()
    given = {
        "LORAPACK_METRICS_KEY_FILE": "/run/secrets/lorapack-metrics-key",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        **variables,
    }
    with mounted(container) as root, log.open("wb") as file:
        process = psutil.Popen(
            confined(root, image, command, cache=cache, secrets=keys.folder, **given),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                for member in [*process.children(recursive=True), process]:
                    member.kill()
                process.wait(STOP_SECONDS)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_image_says_what_it_serves(image: str) -> None:
    described = image_config(image)
    assert described["User"] == "10001:10001"
    assert described["WorkingDir"] == "/srv/lorapack"
    labels = described["Labels"]
    assert labels["lorapack.base"] == BASE
    assert labels["lorapack.base.digest"].startswith("sha256:")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert [item.partition("=")[0] for item in labels["lorapack.adapters"].split(",")] == [
        "pirate", "other",
    ]  # fmt: skip
    assert described["Healthcheck"]["Test"] == [
        "CMD",
        "python3",
        "-m",
        "lorapack_gate.check",
        "ready",
    ]


def test_image_holds_what_is_served_and_nobody_can_change_it(container: str) -> None:
    assert in_container(container, "id", "-u") == "10001"
    listed = in_container(container, "find", ".", "-maxdepth", "1").split()
    assert {"./serve.yaml", "./gate.json", "./expected.json", "./gate", "./base"} <= set(listed)
    assert not {"./originals", "./README.md", "./compose.yaml", "./Dockerfile"} & set(listed)
    assert in_container(container, "find", ".", "!", "-readable") == ""
    assert in_container(container, "find", ".", "-writable") == ""


def test_image_serves_adapters_and_a_merged_model_and_ends_when_told(
    container: str, image: str, keys: Keys, tmp_path: Path
) -> None:
    ports, log = (free_port(), free_port()), tmp_path / "log.txt"
    front = {"LORAPACK_NEIGHBOURS": f"{MERGED}=http://127.0.0.1:{ports[1]}"}
    behind = {"LORAPACK_HOME": f"/srv/lorapack/models/{MERGED}"}
    other_log = tmp_path / "other.txt"
    with (
        serving(container, image, keys, ports[1], other_log, **behind) as neighbour,
        serving(container, image, keys, ports[0], log, **front) as server,
    ):
        wait_ready(ports[1], other_log)
        check_proven(wait_ready(ports[0], log))
        for process in (neighbour, server):
            check_confinement(process)
        check_answers(talk(ports[0]))
        check_doors(ports[0])
        health = image_config(image)["Healthcheck"]["Test"][1:]
        in_container(container, *health, "--port", str(ports[0]))
        neighbour.send_signal(signal.SIGTERM)
        assert neighbour.wait(STOP_SECONDS) == 0
        # The first server goes on with its own models, and says what is missing.
        time.sleep(2)  # an answer about neighbours counts for a second
        status, told = ask(ports[0], "/ready")
        assert (status, json.loads(told)["neighbours"]) == (200, {MERGED: False})
        assert MERGED in json.loads(told)["reason"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(STOP_SECONDS) == 0


def check_confinement(process: psutil.Popen) -> None:
    """The process that was started has become vLLM; it may do nothing but read."""
    assert "vllm.entrypoints.openai.api_server" in process.cmdline()
    assert process.uids().real == 10001
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    rights = {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert rights == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    mounts = Path(f"/proc/{process.pid}/mounts").read_text(encoding="utf-8").splitlines()
    (options,) = [line.split()[3] for line in mounts if line.split()[1] == "/"]
    assert options.split(",")[0] == "ro"


def test_image_does_not_start_without_a_key(container: str, image: str, tmp_path: Path) -> None:
    empty = tmp_path / "secrets"
    empty.mkdir()
    log = tmp_path / "log.txt"
    with serving(container, image, Keys(empty), free_port(), log) as process:
        assert process.wait(STOP_SECONDS) == 78
    assert "lorapack-api-key" in log.read_text(encoding="utf-8")
