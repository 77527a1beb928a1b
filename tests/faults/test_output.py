"""Disks that are full or read-only, limits of the system, and outputs that stand in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import make_world
from tests.faults.fault import Fault
from tests.faults.runner import Outcome, Runner
from tests.faults.world import World, assert_same, check_failure

ROOM = "free some space, or give an --out on another disk"
NOBODY = 65534


@pytest.fixture
def small_disk(world: World) -> Iterator[World]:
    """A world that writes to a disk of 96 MiB; skipped where nothing may be mounted.

    `test_no_file_may_grow` does the same with a limit that everybody may set.
    """
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m,nr_inodes=400", "tmpfs", str(world.work)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {tried.stderr.strip()}")
    try:
        yield world
    finally:
        subprocess.run(["umount", "--lazy", str(world.work)], check=True)


@pytest.fixture
def foreign(runner: Runner, sources: Path) -> Iterator[World]:
    """A world whose folders other users may enter and read."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "world"
        root.mkdir()
        world = make_world(root, sources, runner)
        for place in (Path(folder), root, *root.rglob("*")):
            place.chmod(0o755 if place.is_dir() else 0o644)
        yield world


def _writing(steps: tuple[str, ...], count: int) -> list[int]:
    """Steps from the first folder of the bundle towards the last one, which is filled after it.

    They end a tenth before it: threads take a few steps more or less from run to run.
    """
    first = steps.index("os.scandir") + 1  # the staging folder is there and empty
    end = len(steps) - 1 - steps[::-1].index("os.mkdir")
    last = first + (end - first) * 9 // 10
    return [first + (last - first) * number // (count - 1) for number in range(count)]


def _run_whole(world: World) -> Outcome:
    """A release that remembers the digests of its sources, as those with faults do.

    The first one may not: digests of files that are a moment old are not remembered.
    """
    for _ in range(2):
        world.forget()
        outcome = world.run(world.release())
        assert outcome.code == 0, outcome.stderr
        world.remove_out()
    return outcome


def test_disk_fills_up_while_writing(small_disk: World) -> None:
    world = small_disk
    outcome = _run_whole(world)
    hog = world.work / "hog"
    for point in _writing(outcome.steps, 16):
        world.forget()
        fault = Fault("fill", point, path=str(hog))
        world.fail(world.release(), "No space left on device", ROOM, fault=fault)
        assert os.statvfs(world.work).f_bavail == 0 or hog.stat().st_size > 90 << 20
        hog.unlink()
    assert world.run(world.release()).code == 0


def test_disk_has_no_room_for_names(small_disk: World) -> None:
    """There may be bytes left, but no further file or folder."""
    world = small_disk
    outcome = _run_whole(world)
    crowd = world.work / "crowd"
    crowd.mkdir()
    for point in _writing(outcome.steps, 16):
        world.forget()
        fault = Fault("fill names", point, path=str(crowd))
        world.fail(world.release(), "No space left on device", ROOM, fault=fault)
        shutil.rmtree(crowd)
        crowd.mkdir()


def test_disk_too_small_is_said_before_anything_is_written(small_disk: World) -> None:
    world = small_disk
    with (world.work / "other").open("wb") as file:
        file.write(bytes(64 << 20))
    text = ("the disk has no room for the output", str(world.work), "bytes free", ROOM)
    world.fail(world.release(), *text)


def test_no_file_may_grow(world: World) -> None:
    outcome = _run_whole(world)
    for point in _writing(outcome.steps, 12):
        world.forget()
        fault = Fault("file size", point)
        world.fail(world.release(), "File too large", "ulimit -f", fault=fault)


def test_read_only_disk(small_disk: World) -> None:
    world = small_disk
    subprocess.run(["mount", "-o", "remount,ro", str(world.work)], check=True)
    for out in (world.out, world.out / "deeper"):
        argv = [str(out) if part == str(world.out) else part for part in world.release()]
        text = ("the output cannot be written", "Read-only file system", "--out that can be")
        world.fail(argv, *text)


def test_folder_without_permission(foreign: World) -> None:
    world = foreign
    world.work.chmod(0o555)
    user = NOBODY if os.geteuid() == 0 else None
    text = ("the output cannot be written", "Permission denied", "--out that can be written")
    world.fail(world.release(), *text, user=user)


def test_source_without_permission(foreign: World) -> None:
    world = foreign
    world.work.chmod(0o777)
    next(world.base.glob("model-00002*")).chmod(0)
    user = NOBODY if os.geteuid() == 0 else None
    text = ("cannot be read", "model-00002-of-00004", "Permission denied", "permissions")
    world.fail(world.release(), *text, user=user)


def test_folder_that_may_not_be_entered(foreign: World) -> None:
    world = foreign
    world.work.chmod(0o777)
    (world.root / "sources").chmod(0)
    user = NOBODY if os.geteuid() == 0 else None
    outcome = world.run(world.release(), user=user)
    (world.root / "sources").chmod(0o755)
    check_failure(outcome, str(world.adapter), "Permission denied", "permissions")
    assert list(world.work.iterdir()) == []


def test_out_of_open_files(world: World) -> None:
    outcome = world.run(world.release())
    assert outcome.code == 0, outcome.stderr
    world.remove_out()
    before = world.listing()
    for spare in range(40):
        world.forget()
        limited = world.run(world.release(), Fault("open files", 1, spare=spare))
        if limited.code == 0:
            break
        # torch's library for the processor says a word of its own.
        lines = limited.stderr.splitlines(keepends=True)
        told = "".join(line for line in lines if not line.startswith("Error in cpuinfo"))
        check_failure(replace(limited, stderr=told), "Too many open files", "ulimit -n")
        assert_same(before, world.listing(), but=set())
    assert 5 < spare < 39


@pytest.mark.parametrize("kind", ["file", "folder", "full folder", "link", "dangling link"])
def test_output_that_exists_is_refused_and_kept(world: World, kind: str) -> None:
    if kind == "file":
        world.out.write_text("mine", encoding="utf-8")
    elif "folder" in kind:
        world.out.mkdir()
    else:
        target = world.root / "elsewhere"
        if kind == "link":
            target.mkdir()
        world.out.symlink_to(target)
    if kind == "full folder":
        (world.out / "mine").write_text("mine", encoding="utf-8")
    world.fail(world.release(), "the output exists already", str(world.out), "give another --out")


@pytest.mark.parametrize(
    ("place", "texts"),
    [
        ("file/bundle", ("File exists", "--out")),
        ("file/deeper/bundle", ("Not a directory", "--out whose parent is a folder")),
        ("n" * 300, ("File name too long", "give a shorter --out")),
        ("n" * 250, ("File name too long", "give a shorter --out")),
        ("a/b/" + "n" * 250, ("File name too long", "give a shorter --out")),
        ("not-\udcff-text", ("not UTF-8", "rename the folder")),
    ],
)
def test_output_that_cannot_be(world: World, place: str, texts: tuple[str, ...]) -> None:
    (world.work / "file").write_text("mine", encoding="utf-8")
    argv = world.release()
    argv[argv.index(str(world.out))] = place
    world.fail(argv, *texts)


def test_strangers_link_at_the_staging_folder_is_not_followed(world: World) -> None:
    precious = world.root / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine", encoding="utf-8")
    (world.work / ".bundle.lorapack").symlink_to(precious)
    world.fail(world.release(), "the output cannot be written", ".bundle.lorapack", "--out")
    assert (precious / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_strangers_staging_folder_is_not_used(world: World) -> None:
    staging = world.work / ".bundle.lorapack"
    staging.mkdir()
    os.chown(staging, NOBODY, NOBODY)
    world.fail(world.release(), "another lorapack is writing this output", "another --out")


@pytest.mark.parametrize("action", ["append", "truncate", "remove"])
@pytest.mark.parametrize("name", ["base/model-00003-of-00004.safetensors", "base/tokenizer.json",
                                  "adapter/adapter_model.safetensors"])  # fmt: skip
def test_source_that_changes_meanwhile_is_noticed(world: World, action: str, name: str) -> None:
    outcome = world.run(world.release())
    assert outcome.code == 0, outcome.stderr
    world.remove_out()
    source = world.root / "sources" / name
    kept = source.read_bytes()
    staged = outcome.steps.index("fcntl.flock") + 1
    for point in (staged, (staged + outcome.steps.index("os.rename")) // 2):
        world.forget()
        fault = Fault(action, point, path=str(source))
        world.fail(world.release(), source.name, "hint: ", fault=fault)
        source.unlink(missing_ok=True)
        source.write_bytes(kept)
    assert world.run(world.release()).code == 0


@pytest.mark.parametrize(
    "name",
    [
        "base/model-00003-of-00004.safetensors",
        "base/config.json",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
    ],
)
def test_source_that_is_written_to_is_noticed_though_it_reads_the_same(
    world: World, name: str
) -> None:
    shutil.copy(world.base / "tokenizer.json", world.adapter / "tokenizer.json")
    source = world.root / "sources" / name
    outcome = world.run(world.release())
    world.remove_out()
    staged = outcome.steps.index("fcntl.flock") + 1
    world.forget()
    text = ("the file changed while it was read", source.name, "run again")
    world.fail(world.release(), *text, fault=Fault("rewrite", staged, path=str(source)))
