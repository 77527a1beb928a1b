"""A warm fork server, and a world with real sources for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import models
from tests.faults.runner import Runner
from tests.faults.world import World


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in four shards and an adapter; not to be written to."""
    folder = tmp_path_factory.mktemp("sources")
    models.make_llama(folder / "base", max_shard_size="60KB")
    models.make_adapter(folder / "base", folder / "adapter")
    return folder


@pytest.fixture(scope="session")
def runner(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A fork server that has imported what a release imports."""
    with Runner() as server:
        world = make_world(tmp_path_factory.mktemp("scout"), sources, server)
        outcome = world.run(world.release())
        assert outcome.code == 0, outcome.stderr
        server.import_modules(server.modules)
        yield server


@pytest.fixture
def world(tmp_path: Path, sources: Path, runner: Runner) -> World:
    """Sources of one's own, which a test may damage."""
    return make_world(tmp_path, sources, runner)


def make_world(root: Path, sources: Path, runner: Runner) -> World:
    """Copies the sources and makes the folders."""
    world = World(root, runner)
    shutil.copytree(sources, root / "sources")
    for name in ("work", "tmp"):
        (root / name).mkdir()
    return world
