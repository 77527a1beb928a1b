"""lorapack's own image, really built and run, without a container engine.

Run by `just test-container`; see `tests.buildah` for what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from packager import __version__
from tests import models
from tests.buildah import build, image_config, run

pytestmark = pytest.mark.container

CHECKOUT = Path(__file__).parents[2]
IMAGE = "localhost/lorapack-test:latest"


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    build(CHECKOUT, "docker/packager.Dockerfile", IMAGE, "--build-arg=REVISION=abc123")
    name = run("buildah", "from", IMAGE)
    yield name
    run("buildah", "rm", name)


def in_container(container: str, *command: str, mount: Path | None = None) -> str:
    volume = [f"--volume={mount}:/data"] if mount else []
    return run("buildah", "run", "--isolation=chroot", *volume, container, "--", *command)


def test_image_tells_version_licence_and_entry(container: str) -> None:
    config = image_config(IMAGE)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["lorapack"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["revision"] == "abc123"


def test_image_runs_as_nobody_special(container: str) -> None:
    assert in_container(container, "id", "-u") == "10001"
    assert in_container(container, "lorapack", "--version").endswith(__version__)


def test_image_holds_no_sources(container: str) -> None:
    listed = in_container(container, "ls", "/", "/opt/lorapack").split()
    assert "opt" in listed
    assert "src" not in listed


def test_image_releases_an_adapter(container: str, tmp_path: Path) -> None:
    """The whole of it: merge, proof in float32, card and report, out of the installed wheel."""
    models.make_adapter(models.make_llama(tmp_path / "base"), tmp_path / "海盗")
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o644)
    release = ("release", "pirate=海盗", "--base", "base", "--out", "out")
    assert "merged/pirate" in in_container(container, "lorapack", *release, mount=tmp_path)
    out = tmp_path / "out"
    assert (out / "merged/pirate/model.safetensors").is_file()
    assert (out / "lorapack.json").stat().st_uid == 10001
    verify = ("verify", "out", "--base", "base")
    assert "merged/pirate" in in_container(container, "lorapack", *verify, mount=tmp_path)
