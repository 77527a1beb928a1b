"""A store in bad hands: killed, interrupted, full, locked, forbidden; nothing half-made shows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.fault import Fault
from tests.faults.runner import Child, Outcome, Runner
from tests.faults.world import check_failure
from tests.publish_ollama.bundle import NAME, gguf_of, write_bundle

POINTS = 16
NOBODY = 65534
_BLOB = re.compile(r"sha256-[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """A bundle, a store, and the command that puts one into the other."""

    root: Path
    runner: Runner

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def store(self) -> Path:
        return self.root / "disk/models"

    def start(self, fault: Fault | None = None, user: int | None = None) -> Child:
        argv = ["publish", str(self.bundle), "--ollama-store", str(self.store)]
        env = {"XDG_CACHE_HOME": str(self.root / "cache"), "TMPDIR": str(self.root)}
        return self.runner.start(
            argv, root=self.root / "disk", cwd=self.root, env=env, fault=fault, user=user
        )

    def run(self, fault: Fault | None = None, user: int | None = None) -> Outcome:
        return self.start(fault, user).wait()

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.store).as_posix(): path.read_bytes()
            for path in self.store.rglob("*")
            if path.is_file()
        }

    def check_sound(self) -> None:
        """Whatever looks like a blob is whole, and every model has all of its blobs."""
        for path in (self.store / "blobs").glob("*"):
            if _BLOB.fullmatch(path.name):
                assert path.name == f"sha256-{hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in (self.store / "manifests").glob("*/*/*/*"):
            document = json.loads(path.read_bytes())
            for layer in (document["config"], *document["layers"]):
                blob = self.store / "blobs" / layer["digest"].replace(":", "-")
                assert blob.stat().st_size == layer["size"]


def wait_until_blocked(pid: int) -> None:
    """Waits until a process waits for a lock of another one."""
    for _ in range(400):
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        if any("-> FLOCK" in line and str(pid) in line.split() for line in locks):
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} does not wait")


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """A fork server that has imported what publishing into a store imports."""
    with Runner() as server, tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder), server)
        outcome = place.run()
        assert outcome.code == 0, outcome.stderr
        server.import_modules(server.modules)
        yield server


@pytest.fixture
def place(tmp_path: Path, runner: Runner) -> Place:
    return make_place(tmp_path, runner)


def make_place(root: Path, runner: Runner) -> Place:
    write_bundle(root / "bundle")
    (root / "disk").mkdir()
    return Place(root, runner)


def test_killed_anywhere_leaves_nothing_that_looks_finished(place: Place) -> None:
    whole = place.run()
    assert whole.code == 0, whole.stderr
    expected = place.files()
    last = len(whole.steps)
    points = sorted({1 + (last - 1) * number // (POINTS - 1) for number in range(POINTS)})
    assert len(points) == POINTS
    stages = set()
    for point in points:
        shutil.rmtree(place.store)
        killed = place.run(Fault("kill", point))
        assert killed.code == -signal.SIGKILL, (point, killed)
        place.check_sound()
        stages.add(len(list((place.store / "manifests").glob("*/*/*/*"))))
        again = place.run()
        assert again.code == 0, (point, again.stderr)
        assert place.files() == expected, point
    assert 0 in stages
    assert stages & {1, 2}  # between the models


@pytest.mark.parametrize("action", ["interrupt", "terminate"])
def test_interrupted_leaves_only_whole_blobs(place: Place, action: str) -> None:
    whole = place.run()
    expected = place.files()
    for point in range(5, len(whole.steps), len(whole.steps) // 4):
        shutil.rmtree(place.store)
        outcome = place.run(Fault(action, point))
        assert outcome.code == 1, (point, outcome)
        assert outcome.stderr.startswith("error: interrupted"), outcome.stderr
        place.check_sound()
        assert all(name in expected for name in place.files()), point
        assert place.run().code == 0
        assert place.files() == expected


def test_what_another_run_left_behind_is_removed(place: Place) -> None:
    for folder in ("blobs", "manifests"):
        (place.store / folder).mkdir(parents=True)
    digest = hashlib.sha256(gguf_of(place.bundle).read_bytes()).hexdigest()
    (place.store / f"blobs/sha256-{digest}.lorapack").write_bytes(b"half")
    (place.store / "blobs/sha256-0.lorapack").write_bytes(b"of something else")
    (place.store / "blobs/sha256-of-a-pull-partial").write_bytes(b"Ollama's own")
    (place.store / "manifests/latest.lorapack").write_bytes(b"{")
    assert place.run().code == 0
    names = {path.name for path in place.store.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith(".lorapack")]
    assert "sha256-of-a-pull-partial" in names
    place.check_sound()


def test_two_at_once_wait_for_each_other(place: Place) -> None:
    whole = place.run()
    expected = place.files()
    shutil.rmtree(place.store)
    first = place.start(Fault("stop", "copy_file_range"))
    first.wait_until_stopped()
    second, third = place.start(), place.start()
    wait_until_blocked(second.pid)
    wait_until_blocked(third.pid)
    first.resume()
    outcomes = [child.wait() for child in (first, second, third)]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0]
    assert outcomes[0].stdout == whole.stdout
    assert place.files() == expected
    assert ["another lorapack writes into" in outcome.stderr for outcome in outcomes] == [
        False, True, True,
    ]  # fmt: skip
    assert [outcome.stdout.count("wrote 0 B in 0 blobs") for outcome in outcomes] == [1, 3, 3]


def test_a_run_that_waits_can_be_interrupted(place: Place) -> None:
    first = place.start(Fault("stop", "copy_file_range"))
    first.wait_until_stopped()
    second = place.start()
    wait_until_blocked(second.pid)
    os.kill(second.pid, signal.SIGTERM)
    outcome = second.wait()
    assert outcome.code == 1
    assert "error: interrupted by SIGTERM" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    first.resume()
    assert first.wait().code == 0
    place.check_sound()
    assert len(list((place.store / "manifests").glob("*/*/*/*"))) == 3


@pytest.fixture
def small_disk(place: Place) -> Iterator[tuple[Place, Fault, str]]:
    """A disk that fills up while it is written to; where nothing may be mounted, a limit."""
    disk = place.root / "disk"
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield place, Fault("file size", "copy_file_range"), "ulimit -f"
        return
    try:
        full = Fault("fill", "copy_file_range", path=str(disk / "full"))
        yield place, full, "free some space: ollama rm removes models"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_fills_up(small_disk: tuple[Place, Fault, str]) -> None:
    place, fault, hint = small_disk
    outcome = place.run(fault)
    check_failure(outcome, "the store cannot be written", hint)
    place.check_sound()
    assert not [name for name in place.files() if name.startswith("manifests/")]
    (place.root / "disk/full").unlink(missing_ok=True)
    assert place.run().code == 0
    place.check_sound()


def test_a_limit_on_the_size_of_files(place: Place) -> None:
    check_failure(place.run(Fault("file size", 30)), "the store cannot be written", "ulimit -f")
    place.check_sound()
    assert place.run().code == 0


def test_a_file_that_changes_while_it_is_copied(place: Place) -> None:
    path = gguf_of(place.bundle)
    fault = Fault("rewrite", "copy_file_range", path=str(path))
    assert place.run(fault).code == 0  # the same bytes: nothing is wrong
    shutil.rmtree(place.store)
    check_failure(
        place.run(Fault("truncate", "copy_file_range", path=str(path))),
        "the store cannot be written",
    )
    place.check_sound()
    assert not [name for name in place.files() if name.startswith("manifests/")]


def test_a_store_of_somebody_else(runner: Runner) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder), runner)
        for path in (place.root, *place.root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        user = NOBODY if os.geteuid() == 0 else None
        place.store.mkdir(mode=0o555)
        check_failure(
            place.run(user=user), "the store cannot be written", "Permission denied",
            "run as the user whose store it is", "--ollama NAME",
        )  # fmt: skip
        assert list(place.store.iterdir()) == []


def test_a_folder_in_the_place_of_a_blob(place: Place) -> None:
    digest = hashlib.sha256(gguf_of(place.bundle).read_bytes()).hexdigest()
    (place.store / "blobs" / f"sha256-{digest}").mkdir(parents=True)
    check_failure(place.run(), "the store cannot be written", "Is a directory")
    assert not list((place.store / "manifests").glob("*/*/*/*"))


def test_a_file_in_the_place_of_a_models_folder(place: Place) -> None:
    library = place.store / "manifests/registry.ollama.ai/library"
    library.mkdir(parents=True)
    (library / NAME).write_text("in the way")
    check_failure(place.run(), "the store cannot be written", NAME)
    assert (library / NAME).read_text() == "in the way"
