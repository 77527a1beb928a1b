"""Go's encoder, and bundles to publish."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.publish_ollama.bundle import write_bundle
from tests.publish_ollama.go import build_oracle


@pytest.fixture(scope="session")
def go_oracle() -> Path:
    return build_oracle()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two quants of one adapter, with everything that a request can say."""
    return write_bundle(tmp_path / "bundle")
