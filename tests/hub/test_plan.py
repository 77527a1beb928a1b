"""`lorapack plan` of a base on the Hub: the headers are fetched, and the disk stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from packager import hub
from packager.base import read_base
from packager.errors import BaseMismatchError, InputError
from packager.lock import LOCK_NAME
from tests.loopback_hub import Client, LoopbackHub
from tests.models import make_adapter, make_llama
from tests.quantisation.stored import quantise_base

StartClient = Callable[..., Client]
ROOT = Path(__file__).resolve().parents[2]
REPO = "org/base"
FIRST_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """A user's machine: an adapter, and homes that hold nothing yet."""

    root: Path
    adapter: Path
    environment: dict[str, str]

    def run(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "packager", *map(str, arguments)],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    def plan(self) -> dict[str, object]:
        done = self.run("plan", self.adapter, "--base", REPO, "--json")
        document: dict[str, object] = json.loads(done.stdout)
        return document

    def files(self) -> dict[str, tuple[int, int]]:
        """Everything below the root, but the folder for temporary files: size and last change."""
        return {
            str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
            for path in self.root.rglob("*")
            if path != self.root / "tmp"
        }


@pytest.fixture
def place(loopback_hub: LoopbackHub, tmp_path: Path) -> Place:
    base = make_llama(tmp_path / "made/base", layers=4, hidden=128, max_shard_size="400KB")
    loopback_hub.seed(REPO, base)
    root = tmp_path / "machine"
    adapter = make_adapter(base, root / "adapter")
    (root / "tmp").mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"},
        **loopback_hub.environment(root / "huggingface"),
        "PYTHONPATH": str(ROOT),
        "HOME": str(root),
        "XDG_CACHE_HOME": str(root / "cache"),
        "TMPDIR": str(root / "tmp"),
    }
    return Place(root, adapter, environment)


def weights_bytes(loopback: LoopbackHub) -> list[str | None]:
    return [item.range for item in loopback.asked("object", method="GET")]


def test_the_disk_is_untouched_and_no_weights_are_fetched(
    loopback_hub: LoopbackHub, place: Place
) -> None:
    before = place.files()
    planned = place.plan()
    assert place.files() == before
    wanted = f"bytes=0-{FIRST_BYTES - 1}"
    assert set(weights_bytes(loopback_hub)) == {wanted}
    assert len(weights_bytes(loopback_hub)) >= 2
    # The same as of the whole base, once it is there.
    place.run("lock", place.adapter, "--base", REPO)
    (place.adapter / LOCK_NAME).unlink()
    loopback_hub.forget()
    before = place.files()
    assert place.plan() == planned
    assert place.files() == before
    assert weights_bytes(loopback_hub) == []


def test_a_lock_is_obeyed_by_what_the_hub_announces(
    loopback_hub: LoopbackHub, place: Place
) -> None:
    place.run("lock", place.adapter, "--base", REPO)
    assert place.plan()["evidence"] == "lock"
    lock = (place.adapter / LOCK_NAME).read_text(encoding="utf-8")
    other = make_llama(place.root / "other", layers=4, hidden=128, max_shard_size="400KB", seed=5)
    loopback_hub.seed(REPO, other)
    before = place.files()
    done = place.run("plan", place.adapter, "--base", f"{REPO}@main", code=1)
    assert "differ from the lock" in done.stderr
    assert "model-00001-of-" in done.stderr
    assert place.files() == before
    assert (place.adapter / LOCK_NAME).read_text(encoding="utf-8") == lock


def test_a_base_in_four_bits_is_planned_from_its_descriptions(
    loopback_hub: LoopbackHub, place: Place, tmp_path: Path
) -> None:
    """What bitsandbytes stores beside each weight is fetched, and no weight."""
    stored = quantise_base(
        tmp_path / "made/base", tmp_path / "made/stored", load_in_4bit=True,
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    loopback_hub.seed(REPO, stored)
    planned = place.plan()
    total = sum(file.stat().st_size for file in stored.glob("*.safetensors"))
    spans = [span.removeprefix("bytes=").split("-") for span in weights_bytes(loopback_hub) if span]
    assert sum(int(end) - int(start) + 1 for start, end in spans) < total / 4
    place.run("lock", place.adapter, "--base", REPO)
    (place.adapter / LOCK_NAME).unlink()
    assert place.plan() == planned
    assert "dequantise" in json.dumps(planned)


def hollow_base(folder: Path) -> tuple[str, ...]:
    """Runs in the client: lays the base out, and returns what it was told of it."""
    remote = hub.resolve_repo(REPO)
    entries = hub.fetch_hollow(remote, hub.wanted_base_files(remote), folder)
    return tuple(f"{entry.path} {entry.size} {entry.sha256}" for entry in entries)


def seed_many(loopback: LoopbackHub, folder: Path, *, tensors: int = 3000) -> Path:
    """A base whose header is longer than what is asked for first."""
    folder.mkdir()
    value = np.zeros((2, 4), np.float32)
    weights = {f"model.layers.{n}.a.name.of.some.length.weight": value for n in range(tensors)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    loopback.seed(REPO, folder)
    return folder


def test_a_header_that_is_longer(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    base = seed_many(loopback_hub, tmp_path / "base")
    told = client().call(hollow_base, tmp_path / "hollow")
    stored = loopback_hub.repo(REPO).commit("main")
    assert stored is not None
    file = stored.files["model.safetensors"]
    assert f"model.safetensors {file.size} {file.sha256}" in told
    whole, hollow = read_base(base), read_base(tmp_path / "hollow")
    assert hollow.fingerprint == whole.fingerprint
    offsets = [[ref.offset for ref in index.tensors.values()] for index in (whole, hollow)]
    assert offsets[0] == offsets[1]
    first, second = (item.range for item in loopback_hub.asked("object"))
    assert first == f"bytes=0-{FIRST_BYTES - 1}"
    assert second is not None
    assert second.startswith(f"bytes={FIRST_BYTES}-")
    assert int(second.rpartition("-")[2]) < whole.files[0].data_start


@pytest.mark.parametrize("fault", [{"status": 503}, {"cut_after": 30_000}])
def test_a_short_failure_is_waited_out(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path, fault: dict[str, object]
) -> None:
    base = seed_many(loopback_hub, tmp_path / "base")
    told = loopback_hub.fail("object", **fault)
    client().call(hollow_base, tmp_path / "hollow")
    assert told.times == 0
    assert read_base(tmp_path / "hollow").fingerprint == read_base(base).fingerprint


def test_damaged_headers_and_altered_files_are_refused(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    base = seed_many(loopback_hub, tmp_path / "base")
    process = client()
    loopback_hub.fail("resolve", alter=True, containing="config.json", method="GET", times=9)
    with pytest.raises(BaseMismatchError, match=r"config\.json"):
        process.call(hollow_base, tmp_path / "first")
    loopback_hub.heal()
    weights = base / "model.safetensors"
    weights.write_bytes((1 << 40).to_bytes(8, "little") + weights.read_bytes()[8:])
    loopback_hub.seed(REPO, base)
    with pytest.raises(InputError, match="header"):
        process.call(hollow_base, tmp_path / "second")
