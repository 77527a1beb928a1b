"""The CPU image of a real bundle, really built and run as its own user; `just test-container`."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.buildah import build, image_config, run
from tests.container.served import (
    BASE,
    Keys,
    check_answers,
    check_doors,
    check_proven,
    release_bundle,
    talk,
    wait_ready,
    write_keys,
)

pytestmark = pytest.mark.container

IMAGE = "localhost/lorapack-served:cpu"
STOP_SECONDS = 120


@pytest.fixture(scope="module")
def image(
    smollm2_base: Path, pirate_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("image") / "out"
    bundle = release_bundle(smollm2_base, pirate_adapter, folder)
    # As safetensors writes weights, and as a careful umask leaves folders.
    for path in bundle.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    yield build(bundle, "Dockerfile.cpu", IMAGE)
    run("buildah", "rmi", IMAGE)


@pytest.fixture
def container(image: str) -> Iterator[str]:
    name = run("buildah", "from", image)
    yield name
    run("buildah", "rm", name)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    tmp_path.chmod(0o755)
    return write_keys(tmp_path / "secrets")


def in_container(container: str, *command: str) -> str:
    return run("buildah", "run", "--isolation=chroot", "--network=host", container, "--", *command)


@contextmanager
def serving(
    container: str, image: str, keys: Keys, port: int, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the image's own entry point and arguments, on another port."""
    command = [*image_config(image)["Entrypoint"], *image_config(image)["Cmd"]]
    command[command.index("--port") + 1] = str(port)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                "buildah", "run", "--isolation=chroot", "--network=host",
                f"--volume={keys.folder}:/run/secrets:ro",
                "--env=LORAPACK_METRICS_KEY_FILE=/run/secrets/lorapack-metrics-key",
                "--env=HF_HUB_OFFLINE=1", "--env=VLLM_CPU_KVCACHE_SPACE=1",
                container, "--", *command,
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            for member in psutil.Process(process.pid).children(recursive=True):
                member.kill()
            process.wait(STOP_SECONDS)


def server_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The process that became vLLM: the first in the container."""
    (server,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "vllm.entrypoints.openai.api_server" in child.cmdline()
        and child.cmdline()[0] != "buildah"
    ]
    return server


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


def test_image_serves_two_adapters_and_ends_when_told(
    container: str, image: str, keys: Keys, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log.txt"
    with serving(container, image, keys, port, log) as process:
        check_proven(wait_ready(port, log))
        check_answers(talk(port))
        check_doors(port)
        health = image_config(image)["Healthcheck"]["Test"][1:]
        in_container(container, *health, "--port", str(port))
        server = server_of(process)
        assert server.uids().real == 10001
        # All that was written lies where the container may write when its root is read-only.
        # As root, who may look everywhere.
        written = run(
            "buildah", "run", "--isolation=chroot", "--user=0:0", container, "--",
            "find", "/", "-xdev", "-user", "10001", "-newer", "/srv/lorapack/serve.yaml",
        )  # fmt: skip
        places = {"/" + path.split("/")[1] for path in written.splitlines()}
        assert places <= {"/tmp", "/cache", "/dev"}, written
        server.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0


def test_image_does_not_start_without_a_key(container: str, image: str, tmp_path: Path) -> None:
    empty = tmp_path / "secrets"
    empty.mkdir()
    log = tmp_path / "log.txt"
    with serving(container, image, Keys(empty), free_port(), log) as process:
        assert process.wait(STOP_SECONDS) == 78
    assert "lorapack-api-key" in log.read_text(encoding="utf-8")
