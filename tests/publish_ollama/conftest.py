"""Go's encoder, bundles to publish, and a loopback Ollama."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.publish_ollama.bundle import write_bundle
from tests.publish_ollama.go import build_oracle
from tests.publish_ollama.server import LoopbackOllama


@pytest.fixture(scope="session")
def go_oracle() -> Path:
    return build_oracle()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two quants of one adapter, with everything that a request can say."""
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def ollama(
    tmp_path: Path, go_oracle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackOllama]:
    """An Ollama at OLLAMA_HOST. Its own failures fail the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("OLLAMA_API_KEY", raising=False)
    with LoopbackOllama(tmp_path / "ollama", go_oracle) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        yield server
    assert server.errors == []
