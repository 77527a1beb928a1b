"""The README's commands are run, in its order, and its links and recipes are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from packager import __version__
from packager.cli.main import lorapack
from packager.demo.base import MODEL_NAME
from packager.demo.lesson import ADAPTER_NAME
from tests import models
from tests.loopback_hub.server import LoopbackHub

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md")

# These make a whole environment; CI and the wheel's test do.
NOT_RUN = "pip "


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [
        line.removeprefix("$ ")
        for block in blocks("console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `just demo` leaves it, with a small model in the place of the demo's."""
    folder = tmp_path_factory.mktemp("readme")
    real = models.keep_smollm2()
    base = models.make_llama(folder / MODEL_NAME, vocab_rows=49_152)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        # GGUF takes only tokenizers that llama.cpp knows.
        shutil.copyfile(real / name, base / name)
    # A random model is sure of nothing; with larger rows of the head its answers can be told apart.
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 8
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    models.make_adapter(base, folder / ADAPTER_NAME)
    (line,) = blocks("json")
    json.loads(line)
    (folder / "conversations.jsonl").write_text(line, encoding="utf-8")
    return folder


def run(arguments: list[str], folder: Path, hub: dict[str, str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **hub}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, shlex.join(arguments) + "\n" + done.stdout + done.stderr
    return done.stdout


def test_commands_work_in_the_order_of_the_page(folder: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub") as server:
        server.seed("org/name", folder / MODEL_NAME)
        token = server.add_token("hf_theusersowntoken", "your-name")
        check_page(folder, server.environment(tmp_path / "home", token=token))


def check_page(folder: Path, hub: dict[str, str]) -> None:
    ran = set()
    for command in commands():
        if command.startswith(NOT_RUN):
            continue
        program, *arguments = shlex.split(command)
        assert program == "lorapack"
        run([sys.executable, "-m", "packager", *arguments], folder, hub)
        ran.add(arguments[0])
    assert ran == {"lock", "inspect", "plan", "release", "verify", "publish", "train", "merge"}
    tree = next(block for block in blocks("") if block.startswith("my-release/"))
    for name in re.findall(r"^  (\S+)", tree, flags=re.MULTILINE):
        assert (folder / "my-release" / name).exists(), name
    assert (folder / "merged/model.safetensors").is_file()
    assert (folder / "ollama-release/ollama/pirate/pirate-Q8_0.gguf").is_file()
    for tag in ("Q4_K_M", "Q8_0", "latest"):
        assert (
            folder / f"ollama-models/manifests/registry.ollama.ai/library/pirate/{tag}"
        ).is_file()
    assert (folder / "my-adapter/base.lock.json").is_file()
    use = next(block for block in blocks("python") if "pipeline(" in block)
    assert run([sys.executable, "-c", use], folder, hub)


def test_callback_example_names_what_is_there() -> None:
    example = next(block for block in blocks("python") if "callbacks=" in block)
    for module, name in re.findall(r"^from (\S+) import (\S+)$", example, flags=re.MULTILINE):
        assert hasattr(__import__(module, fromlist=[name]), name)


def test_setup_commands_are_recipes() -> None:
    recipes = set(
        re.findall(r"^(\w[\w-]*)[^:=\n]*:(?!=)", (CHECKOUT / "Justfile").read_text(), re.MULTILINE)
    )
    code = re.findall(r"`[^`\n]+`|^\$.*$", README, re.MULTILINE)
    named = set(re.findall(r"\bjust ([a-z-]+)", "\n".join(code)))
    assert {"demo", "test", "lint", "bench"} <= named
    assert named <= recipes


def test_every_command_is_on_the_page() -> None:
    context = lorapack.make_context("lorapack", ["inspect", "x"], resilient_parsing=True)
    for name in lorapack.list_commands(context):
        assert re.search(rf"\b(lorapack|just) {name}\b|`{name}`", README), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("https://") or (CHECKOUT / target).is_file(), target


def test_map_names_every_room() -> None:
    text = (CHECKOUT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## Rooms")[2].partition("## Invariants")[0]
    rooms = {
        path.stem
        for path in (CHECKOUT / "packager").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem[0] != "_"
    }
    assert rooms <= set(re.findall(r"`(\w+)`", table))


def test_dockerfile_version_is_the_packages() -> None:
    dockerfile = (CHECKOUT / "docker/packager.Dockerfile").read_text(encoding="utf-8")
    assert f"ARG VERSION={__version__}\n" in dockerfile
    assert f"## {__version__}" in (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
