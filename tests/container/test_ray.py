"""The Ray Serve LLM application of a real bundle, run on a Ray of this machine alone."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from packager.container.deployment import HOME
from tests.container.cluster import keep_ray
from tests.container.served import (
    Keys,
    check_answers,
    check_doors,
    check_proven,
    release_bundle,
    talk,
    wait_ready,
    write_keys,
)
from tests.container.test_image import free_port

pytestmark = pytest.mark.container

STOP_SECONDS = 180
PROGRAM = """
import ray
ray.init(num_cpus=8, object_store_memory=200 << 20, include_dashboard=False)
from ray.serve.scripts import cli
cli()
"""


@pytest.fixture(scope="module")
def bundle(
    smollm2_base: Path, pirate_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return release_bundle(smollm2_base, pirate_adapter, tmp_path_factory.mktemp("ray") / "out")


def here(bundle: Path, port: int) -> dict[str, Any]:
    """The bundle's own application, on this machine: its folder, a free port, no GPU."""
    text = (bundle / "ray/serve.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text.replace(HOME, str(bundle)))
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (model,) = config["applications"][0]["args"]["llm_configs"]
    model["accelerator_config"] = {"kind": "cpu"}
    # One slot more than adapters: see lorapack_gate.start about vLLM's CPU build.
    model["engine_kwargs"]["max_loras"] += 1
    model["engine_kwargs"]["max_cpu_loras"] += 1
    return config


def ray_environment(bundle: Path, python: Path, keys: Keys) -> dict[str, str]:
    """What ray/Dockerfile and the image below it set."""
    image = (bundle / "ray/Dockerfile").read_text(encoding="utf-8")
    switches = ("RAY_SERVE_ENABLE_HA_PROXY=1", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1")
    assert all(switch in image for switch in switches)
    return {
        **os.environ,
        **dict(switch.split("=") for switch in switches),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(bundle / "gate"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "LORAPACK_API_KEY_FILE": str(keys.api),
        "LORAPACK_METRICS_KEY_FILE": str(keys.metrics),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def test_ray_serves_two_adapters_behind_the_gate(bundle: Path, tmp_path: Path) -> None:
    python, port, log = keep_ray(), free_port(), tmp_path / "log.txt"
    keys = write_keys(tmp_path / "secrets")
    application = tmp_path / "serve.yaml"
    application.write_text(yaml.safe_dump(here(bundle, port)), encoding="utf-8")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [python, "-c", PROGRAM, "run", application],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ray_environment(bundle, python, keys),
            cwd=tmp_path,
        )
    try:
        check_proven(wait_ready(port, log))
        check_answers(talk(port))
        check_doors(port)
        family = psutil.Process(process.pid).children(recursive=True)
        # The driver, the cluster that it started, the proxy, and the engine's processes.
        assert len(family) > 8
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        assert not left
    finally:
        if process.poll() is None:
            for member in psutil.Process(process.pid).children(recursive=True):
                member.kill()
            process.kill()
            process.wait()
