"""A server of a base on the Hub: pinned to its commit, planned from headers, released whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.loopback_hub import LoopbackHub
from tests.models import make_adapter, make_llama

ROOT = Path(__file__).resolve().parents[2]
REPO = "org/base"


@pytest.fixture
def environment(loopback_hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    loopback_hub.seed(REPO, make_llama(tmp_path / "made/base"))
    make_adapter(tmp_path / "made/base", tmp_path / "adapter")
    return {
        **{key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"},
        **loopback_hub.environment(tmp_path / "huggingface"),
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def run(environment: dict[str, str], folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "packager", *arguments, "--json"],
        cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_base_on_the_hub_is_served_at_its_commit(
    environment: dict[str, str], tmp_path: Path
) -> None:
    asked = ("a=adapter", "b=adapter", "--base", REPO, "--target", "vllm")
    server = run(environment, tmp_path, "plan", *asked)["serving"]
    origin = server["base"]["origin"]
    assert origin["repo"] == server["base"]["name"] == REPO
    assert len(origin["commit"]) == 40
    run(environment, tmp_path, "release", *asked, "--out", "served")
    flags = yaml.safe_load((tmp_path / "served/vllm/serve.yaml").read_text())
    assert flags["model"] == REPO
    assert flags["served-model-name"] == [REPO]
    assert flags["revision"] == flags["tokenizer-revision"] == origin["commit"]
    config = json.loads((tmp_path / "served/vllm/adapters/b/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (REPO, origin["commit"])
    manifest = json.loads((tmp_path / "served/lorapack.json").read_text())
    assert manifest["options"]["vllm_version"] == "0.32.0"
    checked = run(environment, tmp_path, "verify", "served", "--level", "weights")
    assert all(not target["weights"]["problems"] for target in checked["targets"])
