"""Two runs with one --out, really at the same time: one bundle, whole; one plain refusal."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.fault import SHOWN, Fault
from tests.faults.world import World, check_failure

AT_WORK = ("another lorapack is writing this output", "wait for it, or give another --out")
EXISTS = "the output exists already"


@pytest.mark.parametrize("step", ["fcntl.flock", "pwrite", "os.rename", SHOWN])
def test_second_run_is_refused_while_the_first_is_at_work(world: World, step: str) -> None:
    first = world.start(world.release(), Fault("stop", step))
    first.wait_until_stopped()
    refused = world.run(world.release())
    if step == "fcntl.flock":  # not locked yet: the second one may have it
        assert refused.code == 0, refused.stderr
        first.resume()
        check_failure(first.wait())
    else:
        check_failure(refused, *AT_WORK)
        first.resume()
        done = first.wait()
        assert done.code == 0, done.stderr
    _check_whole(world)


def test_second_run_after_the_rename_sees_the_bundle(world: World) -> None:
    first = world.start(world.release(), Fault("stop", SHOWN, later=1))
    first.wait_until_stopped()
    check_failure(world.run(world.release()), EXISTS)
    first.resume()
    assert first.wait().code == 0
    _check_whole(world)


def test_first_run_shows_its_bundle_while_the_second_takes_the_lock(world: World) -> None:
    second = world.start(world.release(), Fault("stop", "fcntl.flock"))
    second.wait_until_stopped()  # it has opened the staging folder and seen no output
    assert world.run(world.release()).code == 0
    second.resume()
    check_failure(second.wait())
    _check_whole(world)


def test_bundle_that_appears_before_the_lock_is_seen_before_work_begins(world: World) -> None:
    steps = world.run(world.release()).steps
    world.remove_out()
    making = steps.index("fcntl.flock") - 2
    assert steps[making : making + 2] == ("os.mkdir", "open")
    second = world.start(world.release(), Fault("stop", making + 1))
    second.wait_until_stopped()
    assert world.run(world.release()).code == 0
    second.resume()
    refused = second.wait()
    check_failure(refused, EXISTS)
    assert "pwrite" not in refused.steps
    _check_whole(world)


def test_lock_on_a_folder_that_is_gone_is_no_lock(world: World) -> None:
    """The second run opens what the first takes away, and the third makes anew."""
    first = world.start(world.release(), Fault("stop", "pwrite"))
    first.wait_until_stopped()
    second = world.start(world.release(), Fault("stop", "fcntl.flock"))
    second.wait_until_stopped()
    os.kill(first.pid, signal.SIGINT)
    first.resume()
    check_failure(first.wait(), "interrupted")
    third = world.start(world.release(), Fault("stop", "pwrite"))
    third.wait_until_stopped()
    second.resume()
    check_failure(second.wait(), *AT_WORK)
    third.resume()
    assert third.wait().code == 0
    _check_whole(world)


def test_output_that_appears_meanwhile_is_kept(world: World) -> None:
    first = world.start(world.release(), Fault("stop", SHOWN))
    first.wait_until_stopped()
    world.out.mkdir()
    first.resume()
    check_failure(first.wait(), EXISTS)
    assert list(world.out.iterdir()) == []
    assert [path.name for path in world.work.iterdir()] == ["bundle"]


def test_run_after_a_killed_one_that_was_stopped(world: World) -> None:
    first = world.start(world.release(), Fault("stop", "pwrite"))
    first.wait_until_stopped()
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    assert world.run(world.release()).code == 0
    _check_whole(world)


def test_many_runs_at_once(world: World) -> None:
    for _ in range(3):
        runs = [world.start(world.release()) for _ in range(5)]
        outcomes = [run.wait() for run in runs]
        assert [outcome.code for outcome in outcomes].count(0) == 1
        for outcome in outcomes:
            if outcome.code != 0:
                check_failure(outcome)
                assert AT_WORK[0] in outcome.stderr or EXISTS in outcome.stderr
        _check_whole(world)
        world.remove_out()


def _check_whole(world: World) -> None:
    assert [path.name for path in world.work.iterdir()] == ["bundle"]
    verified = world.run(["verify", str(world.out), "--level", "weights"])
    assert verified.code == 0, verified.stderr
