"""A dry run with everything in it, GGUF too, reads no weights of the base."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager import digest
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest, plan_request
from packager.progress import Silent
from packager.stamp import stamp_lock
from tests import models
from tests.gguf.cases import CASES, write_model, write_pieces

KEY = "lorapack.base.digest"


def base_digest(request: ReleaseRequest, hollow: Path | None) -> tuple[object, int]:
    plan = plan_request(request, Silent(), hollow=hollow).plan
    (target,) = (target for target in plan.targets if target.gguf is not None)
    assert target.gguf is not None
    (key,) = (key for key in target.gguf.keys if key.name == KEY)
    return key.value, plan.output_bytes


def test_weights_are_not_hashed_for_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_model(CASES["llama-2"], tmp_path / "base", write_pieces(tmp_path / "pieces"))
    adapter = models.make_adapter(base, tmp_path / "adapter")
    options = ReleaseOptions(targets=("merged", "ollama"), license="mit")
    request = ReleaseRequest(((None, adapter),), tmp_path / "out", str(base), options=options)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[Path] = []
    parts = digest._read_parts
    monkeypatch.setattr(digest, "_read_parts", lambda path: read.append(path) or parts(path))
    (tmp_path / "hollow").mkdir()
    told, size = base_digest(request, tmp_path / "hollow")
    assert told == "sha256:" + "?" * 64
    assert base / "model.safetensors" not in read
    assert not (tmp_path / "cache").exists()
    real, same_size = base_digest(request, None)
    assert base / "model.safetensors" in read
    assert size == same_size
    # A lock has to be checked, and then the digest is known.
    stamp_lock(adapter, str(base), Silent())
    assert base_digest(request, tmp_path / "hollow")[0] == real
