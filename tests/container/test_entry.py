"""The images' entry point with their environment, as far as it goes without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packager.container import render_container
from packager.container.deployment import HOME
from packager.serving.document import gate_config, launch_flags, render_gate, render_serve_yaml
from tests.container.plans import SMALL
from tests.vllm_engine import keep_vllm

CHECKOUT = Path(__file__).parents[2]
IMAGES = ("Dockerfile", "Dockerfile.cpu")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    shutil.copytree(
        CHECKOUT / "docker/gate", folder / "gate", ignore=shutil.ignore_patterns("__pycache__")
    )
    flags = launch_flags(SMALL)
    (folder / "serve.yaml").write_text(render_serve_yaml(flags, "0.32.0"), encoding="utf-8")
    (folder / "gate.json").write_text(render_gate(gate_config(SMALL, None)), encoding="utf-8")
    return folder


def environment(image: str, home: Path) -> dict[str, str]:
    """What ENV of a Dockerfile sets, at another place than the image's."""
    text = render_container(SMALL, proven=False)[image].replace("\\\n", "")
    lines = [line.removeprefix("ENV ") for line in text.splitlines() if line.startswith("ENV ")]
    pairs = (word.split("=", 1) for line in lines for word in line.split())
    given = {name: value.replace(HOME, str(home)) for name, value in pairs if name != "PATH"}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, **given, "LORAPACK_API_KEY_FILE": str(home / "api-key")}


def command(image: str, python: str) -> list[str]:
    text = render_container(SMALL, proven=False)[image]
    words = [
        json.loads(re.findall(rf"^{word} (\[.*\])$", text, re.MULTILINE)[0])
        for word in ("ENTRYPOINT", "CMD")
    ]
    assert words[0][0] == "python3"
    return [python, *words[0][1:], *words[1]]


def start(
    image: str, home: Path, *further: str, python: str = sys.executable, **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(image, python), *further],
        cwd=home,
        env={**environment(image, home), **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("image", IMAGES)
def test_image_refuses_to_start_without_a_key(image: str, home: Path) -> None:
    done = start(image, home)
    assert done.returncode == 78
    assert str(home / "api-key") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("image", IMAGES)
def test_image_refuses_to_do_without_keys(image: str, home: Path) -> None:
    done = start(image, home, LORAPACK_INSECURE_NO_AUTH="1", LORAPACK_API_KEY_FILE="")
    assert done.returncode == 78
    assert "0.0.0.0" in done.stderr


def test_image_becomes_vllm_which_knows_every_option(home: Path) -> None:
    (home / "api-key").write_text("a-key-for-the-tests-0123456789\n", encoding="ascii")
    done = start("Dockerfile.cpu", home, "--no-such-option", python=str(keep_vllm()))
    # The exit code is that of vLLM's own parser, which takes everything else.
    assert done.returncode == 2
    assert "unrecognized arguments: --no-such-option" in done.stderr
