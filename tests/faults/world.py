"""A base, an adapter, a place to write to: everything that one command may touch."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.runner import Child, Outcome, Runner


@dataclass(frozen=True)
class World:
    """A folder of its own for each test.

    Attributes:
        root: Holds all the rest.
        runner: Runs commands.
    """

    root: Path
    runner: Runner

    @property
    def base(self) -> Path:
        """A tiny Llama in four shards."""
        return self.root / "sources" / "base"

    @property
    def adapter(self) -> Path:
        """A LoRA adapter on all its linear layers."""
        return self.root / "sources" / "adapter"

    @property
    def work(self) -> Path:
        """Where commands run and write."""
        return self.root / "work"

    @property
    def out(self) -> Path:
        """The bundle to be."""
        return self.work / "bundle"

    @property
    def cache(self) -> Path:
        """XDG_CACHE_HOME."""
        return self.root / "cache"

    def release(self, *more: str) -> list[str]:
        """Arguments of the release that tests let fail."""
        targets = () if "--target" in more else ("--target", "adapter", "--target", "merged")
        return [
            "release", str(self.adapter), "--base", str(self.base), "--out", str(self.out),
            *targets, "--no-behaviour", *more,
        ]  # fmt: skip

    def start(self, argv: list[str], fault: Fault | None = None, user: int | None = None) -> Child:
        """Starts a command in this world."""
        env = {
            "XDG_CACHE_HOME": str(self.cache), "TMPDIR": str(self.root / "tmp"),
            "HF_HOME": str(self.root / "hub"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        return self.runner.start(
            argv, root=self.root, cwd=self.work, env=env, fault=fault, user=user
        )

    def run(self, argv: list[str], fault: Fault | None = None, user: int | None = None) -> Outcome:
        """Runs a command in this world to its end."""
        return self.start(argv, fault, user).wait()

    def fail(
        self, argv: list[str], *texts: str, fault: Fault | None = None, user: int | None = None
    ) -> str:
        """Runs a command that has to fail as a known failure does, and leave no trace.

        One line for each problem, then a hint; exit code 1; nothing written, nothing changed.

        Args:
            argv: The command.
            *texts: Have to stand in what it says: what, where, expected, found, next step.
            fault: What goes wrong.
            user: Who runs it.

        Returns:
            What it said.
        """
        before = self.listing()
        outcome = self.run(argv, fault, user)
        check_failure(outcome, *texts)
        after = self.listing()
        touched = fault.path if fault is not None and fault.path else None
        changed = {path for path in {*before, *after} if touched and path.startswith(touched)}
        assert_same(before, after, but=changed)
        return outcome.stderr

    def listing(self) -> dict[str, str]:
        """Everything in this world but the cache: path → content."""
        found = list_folder(self.root)
        return {path: what for path, what in found.items() if not path.startswith(str(self.cache))}

    def remove_out(self) -> None:
        """Removes the bundle."""
        shutil.rmtree(self.out)

    def forget(self) -> None:
        """Empties the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)


def check_failure(outcome: Outcome, *texts: str) -> None:
    """Checks the form of a known failure and what it says."""
    assert outcome.code == 1, outcome
    assert "Traceback" not in outcome.stderr, outcome.stderr
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    told = [line for line in lines if not line.startswith(("note: ", "warning: "))]
    errors = [line for line in told if line.startswith("error: ")]
    hints = [line for line in told if line.startswith("hint: ")]
    assert errors, outcome.stderr
    assert hints, outcome.stderr
    assert told == [*errors, "", *hints], outcome.stderr
    assert all(len(line) < 1500 for line in lines)
    for text in texts:
        assert text in outcome.stderr, outcome.stderr


def assert_same(before: dict[str, str], after: dict[str, str], *, but: set[str]) -> None:
    """Compares two listings, apart from the paths in `but`."""
    differing = {
        path: (before.get(path), after.get(path))
        for path in {*before, *after} - but
        if before.get(path) != after.get(path)
    }
    assert not differing, differing


def list_folder(folder: Path) -> dict[str, str]:
    """Returns path → what lies there, for everything below a folder."""
    found = {}
    for place, directories, names in os.walk(folder):
        for name in [*directories, *names]:
            path = Path(place, name)
            found[str(path)] = _describe(path)
    return found


def _describe(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "something else"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
