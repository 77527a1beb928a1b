"""The Ray Serve LLM applications of a real bundle, run in their image on a Ray of one machine."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.buildah import confined, mounted, run
from tests.container.served import Keys, check_answers, check_doors, check_proven, talk, wait_ready
from tests.container.test_image import free_port

pytestmark = pytest.mark.container

STOP_SECONDS = 180
PROGRAM = """
import ray
ray.init(num_cpus=8, object_store_memory=200 << 20, include_dashboard=False)
from ray.serve.scripts import cli
cli()
"""


def here(bundle: Path, port: int) -> dict[str, Any]:
    """The bundle's own applications, on this machine: a free port, no GPU."""
    text = (bundle / "ray/serve.yaml").read_text(encoding="utf-8")
    text = text.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{port}")
    config: dict[str, Any] = yaml.safe_load(text)
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    front, merged = (item["args"]["llm_configs"][0] for item in config["applications"])
    for model in (front, merged):
        model["accelerator_config"] = {"kind": "cpu"}
        # The CPU image has no compiler: see lorapack_gate.start.
        model["engine_kwargs"]["enforce_eager"] = True
    # One slot more than adapters: see lorapack_gate.start about vLLM's CPU build.
    front["engine_kwargs"]["max_loras"] += 1
    front["engine_kwargs"]["max_cpu_loras"] += 1
    return config


def test_ray_serves_adapters_and_a_merged_model_behind_gates(
    bundle: Path, ray_image: str, keys: Keys, tmp_path: Path
) -> None:
    port, log, cache = free_port(), tmp_path / "log.txt", tmp_path / "cache"
    cache.mkdir()
    (cache / "serve.yaml").write_text(yaml.safe_dump(here(bundle, port)), encoding="utf-8")
    given = {
        "LORAPACK_METRICS_KEY_FILE": "/run/secrets/lorapack-metrics-key",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TORCH_COMPILE_DISABLE": "1",
    }
    command = ("python3", "-c", PROGRAM, "run", "/cache/serve.yaml")
    container = run("buildah", "from", ray_image)
    try:
        with mounted(container) as root, log.open("wb") as file:
            process = psutil.Popen(
                confined(root, ray_image, command, cache=cache, secrets=keys.folder, **given),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                check(process, port, log)
            finally:
                if process.poll() is None:
                    for member in [*process.children(recursive=True), process]:
                        member.kill()
                    process.wait()
    finally:
        run("buildah", "rm", container)


def check(process: psutil.Popen, port: int, log: Path) -> None:
    """Talks to every model, and sees that all of it ends when it is told to."""
    check_proven(wait_ready(port, log))
    check_answers(talk(port))
    check_doors(port)
    family = process.children(recursive=True)
    # The driver, the cluster that it started, the proxy, and the engines' processes.
    assert len(family) > 8
    assert {member.uids().real for member in family} == {10001}
    process.send_signal(signal.SIGTERM)
    process.wait(STOP_SECONDS)
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    assert not left
