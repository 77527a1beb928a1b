"""One bundle and its images for all tests that run containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buildah import build, run
from tests.container.served import Keys, release_bundle, write_keys

_IMAGE = "localhost/lorapack-served:cpu"
_RAY_IMAGE = "localhost/lorapack-served:ray"


@pytest.fixture(scope="session")
def bundle(
    smollm2_base: Path, pirate_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The server's folder of a release, with the modes of a careful machine."""
    folder = tmp_path_factory.mktemp("served") / "out"
    made = release_bundle(smollm2_base, pirate_adapter, folder)
    # As safetensors writes weights, and as a careful umask leaves folders.
    for path in made.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return made


@pytest.fixture(scope="session")
def image(bundle: Path) -> Iterator[str]:
    """The CPU image."""
    yield build(bundle, "Dockerfile.cpu", _IMAGE)
    run("buildah", "rmi", _IMAGE)


@pytest.fixture(scope="session")
def ray_image(bundle: Path, image: str) -> Iterator[str]:
    """The same with Ray."""
    yield build(bundle, "ray/Dockerfile", _RAY_IMAGE, f"--build-arg=SERVED_IMAGE={image}")
    run("buildah", "rmi", _RAY_IMAGE)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Two keys that the container's user can read."""
    tmp_path.chmod(0o755)
    return write_keys(tmp_path / "secrets")
