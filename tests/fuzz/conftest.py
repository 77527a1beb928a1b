"""Real sources to damage."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.stamp import stamp_lock
from tests import models


@dataclass(frozen=True)
class Sources:
    """A base, an adapter with a lock, and the bundle made of them.

    Attributes:
        root: Holds all three.
    """

    root: Path

    @property
    def base(self) -> Path:
        """A tiny Llama in four shards."""
        return self.root / "base"

    @property
    def adapter(self) -> Path:
        """A LoRA adapter on all its linear layers."""
        return self.root / "adapter"

    @property
    def bundle(self) -> Path:
        """Their release."""
        return self.root / "bundle"


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Made once; not to be written to."""
    made = Sources(tmp_path_factory.mktemp("originals"))
    models.make_llama(made.base, max_shard_size="60KB")
    models.make_adapter(made.base, made.adapter)
    stamp_lock(made.adapter, str(made.base), Silent())
    request = ReleaseRequest(
        ((None, made.adapter),),
        made.bundle,
        base=str(made.base),
        options=ReleaseOptions(targets=("adapter", "merged")),
        behaviour=False,
    )
    release(request, Silent())
    return made


@pytest.fixture
def copies(originals: Sources, tmp_path: Path) -> Sources:
    """Copies of one's own, which a test may damage; the adapter's lock is left out."""
    shutil.copytree(originals.root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter" / "base.lock.json").unlink()
    return Sources(tmp_path)
