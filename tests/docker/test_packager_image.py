"""lorapack's own image, really built and run, without a container engine.

Needs Linux, root, and Debian's buildah and debootstrap; run by `just test-container`. The base
image is made with debootstrap, so that no image registry is needed, and is kept between runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from packager import __version__
from tests import models

pytestmark = pytest.mark.container

CHECKOUT = Path(__file__).parents[2]
BASE_IMAGE = "localhost/lorapack-test-base:12"
IMAGE = "localhost/lorapack-test:latest"


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()


def has_image(name: str) -> bool:
    return not subprocess.run(
        ["buildah", "inspect", "--type", "image", name], capture_output=True, check=False
    ).returncode


@pytest.fixture(scope="module")
def base_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    missing = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    assert not missing, f"apt-get install {' '.join(missing)}"
    if not has_image(BASE_IMAGE):
        root = tmp_path_factory.mktemp("base") / "root"
        packages = "python3,python3-venv,ca-certificates"
        run("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root))
        made = run("buildah", "from", "scratch")
        run("buildah", "add", "--quiet", made, str(root), "/")
        run("buildah", "commit", "--quiet", made, BASE_IMAGE)
        run("buildah", "rm", made)
        shutil.rmtree(root)
    return BASE_IMAGE


def build_options() -> Iterator[str]:
    """What lets pip in the build reach what pip out here reaches."""
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates:
        yield f"--volume={Path(certificates).parent}:/etc/ssl/certs:ro"
    wheels = os.environ.get("PIP_FIND_LINKS")
    if wheels:
        yield from (f"--volume={wheels}:{wheels}:ro", f"--build-arg=PIP_FIND_LINKS={wheels}")
        # The wheels at hand are the CPU build; nothing further has to be asked.
        yield "--build-arg=PIP_EXTRA_INDEX_URL="


@pytest.fixture(scope="module")
def container(base_image: str) -> Iterator[str]:
    run(
        "buildah", "build", "--isolation=chroot", "--network=host", "--quiet",
        f"--build-arg=BASE_IMAGE={base_image}", "--build-arg=REVISION=abc123", *build_options(),
        "--file=docker/packager.Dockerfile", f"--tag={IMAGE}", ".",
    )  # fmt: skip
    name = run("buildah", "from", IMAGE)
    yield name
    run("buildah", "rm", name)


def in_container(container: str, *command: str, mount: Path | None = None) -> str:
    volume = [f"--volume={mount}:/data"] if mount else []
    return run("buildah", "run", "--isolation=chroot", *volume, container, "--", *command)


def test_image_tells_version_licence_and_entry(container: str) -> None:
    template = (
        "{{.OCIv1.Config.User}}|{{.OCIv1.Config.Entrypoint}}|"
        '{{index .OCIv1.Config.Labels "org.opencontainers.image.version"}}|'
        '{{index .OCIv1.Config.Labels "org.opencontainers.image.licenses"}}|'
        '{{index .OCIv1.Config.Labels "org.opencontainers.image.revision"}}'
    )
    shown = run("buildah", "inspect", "--type", "image", "--format", template, IMAGE)
    assert shown.split("|") == ["10001:10001", "[lorapack]", __version__, "Apache-2.0", "abc123"]


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
