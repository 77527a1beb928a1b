"""Killed, interrupted, terminated: nothing half-made is seen, and the next run succeeds."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.fault import SHOWN, Fault
from tests.faults.world import World, assert_same, check_failure, list_folder

POINTS = 50
REMEMBERED = "os.rename"
"""The step that puts the digests of the sources into the cache."""


@pytest.fixture
def steps(world: World) -> tuple[str, ...]:
    """The steps of an undisturbed release, whose bundle stays."""
    outcome = world.run(world.release())
    assert outcome.code == 0, outcome.stderr
    assert outcome.steps.count(SHOWN) == 1
    return outcome.steps


def test_killed_release_leaves_no_bundle_and_can_be_run_again(
    world: World, steps: tuple[str, ...]
) -> None:
    whole = _weights(world.out)
    world.remove_out()
    clean = world.listing()
    points = _points(steps, POINTS)
    assert len(set(points)) == POINTS
    for point in points:
        world.forget()
        outcome = world.run(world.release(), Fault("kill", point))
        assert outcome.code == -signal.SIGKILL, (point, outcome)
        assert not world.out.exists(), point

        again = world.run(world.release())
        assert again.code == 0, (point, again.stderr)
        assert _weights(world.out) == whole, point
        assert [path.name for path in world.work.iterdir()] == ["bundle"], point
        assert {path.name for path in world.cache.rglob("*.*")} <= {"digests.json", "digests.lock"}
        world.remove_out()
        assert_same(clean, world.listing(), but=set())


def test_release_killed_after_the_rename_is_whole(world: World, steps: tuple[str, ...]) -> None:
    whole = _weights(world.out)
    world.remove_out()
    after = len(steps) - steps.index(SHOWN) - 1
    assert after >= 1  # the flush of the folder above
    outcome = world.run(world.release(), Fault("kill", SHOWN, later=after))
    assert outcome.code == -signal.SIGKILL
    assert _weights(world.out) == whole
    assert world.run(["verify", str(world.out), "--level", "files"]).code == 0
    assert [path.name for path in world.work.iterdir()] == ["bundle"]


def test_killed_merge_leaves_no_folder_and_can_be_run_again(world: World) -> None:
    argv = [
        "merge", "--base_model_path", str(world.base), "--lora_adapter_path", str(world.adapter),
        "--output_path", str(world.out),
    ]  # fmt: skip
    outcome = world.run(argv)
    assert outcome.code == 0, outcome.stderr
    whole = list_folder(world.out)
    world.remove_out()
    for point in _points(outcome.steps, 8):
        killed = world.run(argv, Fault("kill", point))
        assert killed.code == -signal.SIGKILL
        assert not world.out.exists()
        assert world.run(argv).code == 0
        assert list_folder(world.out) == whole
        assert [path.name for path in world.work.iterdir()] == ["bundle"]
        world.remove_out()


@pytest.mark.parametrize("action", ["interrupt", "terminate", "hang up"])
def test_interrupted_release_says_so_and_leaves_nothing(
    world: World, steps: tuple[str, ...], action: str
) -> None:
    world.remove_out()
    deeper = world.release()
    deeper[deeper.index(str(world.out))] = str(world.out / "made" / "on" / "the" / "way")
    before = world.listing()
    locked = steps.index("fcntl.flock") + 1  # all around the making of the staging folder
    for number, point in enumerate([*range(locked - 3, locked + 3), *_points(steps, 12)]):
        world.forget()
        outcome = world.run(deeper if number % 3 == 0 else world.release(), Fault(action, point))
        check_failure(outcome, "error: interrupted", "hint: nothing half-made stays")
        assert ("SIG" in outcome.stderr) == (action != "interrupt")
        assert_same(before, world.listing(), but=set())


def test_nohup_is_respected(world: World, steps: tuple[str, ...]) -> None:
    world.remove_out()
    outcome = world.run(world.release(), Fault("hang up", 100, ignored=True))
    assert outcome.code == 0, outcome.stderr
    assert world.out.exists()


def _points(steps: tuple[str, ...], count: int) -> list[int | str]:
    """Steps before the bundle is shown: all over the work, three writes, and the renames.

    Threads let steps change places, so that the last few before the showing are left out.
    """
    last = steps.index(SHOWN) - 4
    writes = [number for number, name in enumerate(steps, 1) if name == "pwrite"]
    assert len(writes) >= 3
    chosen = {writes[0], writes[len(writes) // 2], writes[-1]}
    named = [name for name in (REMEMBERED, SHOWN) if name in steps]
    even = count - len(chosen) - len(named)
    for number in range(even):
        point = 1 + (last - 1) * number // (even - 1)
        chosen.add(point if point not in chosen else point + 1)
    return [*sorted(chosen), *named]


def _weights(bundle: Path) -> dict[str, str]:
    """The weights files: path → sha256."""
    files = list_folder(bundle)
    found = {path: what for path, what in files.items() if path.endswith(".safetensors")}
    assert len(found) == 5
    return found
