"""One fault at one step of a running process.

A step is something that the process asks of the file system below a folder: opening, listing,
making, renaming and removing, as Python's audit events tell, and every positioned read, write,
copy, lock and flush.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATH_EVENTS = frozenset(
    {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
)
_CALLS = ("pwrite", "write", "fsync", "fdatasync", "copy_file_range", "preadv", "pread")
_SIGNALS = {
    "kill": signal.SIGKILL,
    "interrupt": signal.SIGINT,
    "terminate": signal.SIGTERM,
    "hang up": signal.SIGHUP,
    "stop": signal.SIGSTOP,
}
SHOWN = "rename to --out"


@dataclass(frozen=True)
class Fault:
    """What happens, and when.

    Attributes:
        action: Nothing, a signal by name, `fill` (the disk, with a file `path`), `fill names`
            (the disk, with files in the folder `path`), `file size` (no
            file may grow), `open files` (few more may be opened), and of the file `path`:
            `append`, `rewrite` (the same bytes), `truncate` or `remove`.
        at: Number of the step, from 1; or the name of one, the first so called.
        later: Steps after the one named.
        path: For those that need one.
        spare: Open files that are still allowed.
        ignored: Whether the process was started with this signal ignored, as by nohup.
    """

    action: str = ""
    at: int | str = 0
    later: int = 0
    path: str = ""
    spare: int = 0
    ignored: bool = False


class Steps:
    """Counts the steps of this process below a folder and lets the fault happen at one of them."""

    def __init__(self, root: str, fault: Fault) -> None:
        self._root = root
        self._fault = fault
        self._numbers = itertools.count(1)
        self._active = False
        self._at = fault.at if isinstance(fault.at, int) else 0
        self.seen: list[str] = []

    def begin(self) -> None:
        """Starts to count; cannot be undone in this process, only paused by `end`."""
        if self._fault.ignored:
            signal.signal(_SIGNALS[self._fault.action], signal.SIG_IGN)
        sys.addaudithook(self._audit)
        for name in _CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._active = True

    def end(self) -> None:
        """Stops counting."""
        self._active = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event in _PATH_EVENTS and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - links stay links
            name = event if path.startswith(self._root) else ""
        elif event == "fcntl.flock":
            name = event
        else:
            named = event == "ctypes.dlsym" and arguments[1] == "renameat2"
            name = SHOWN if named else ""
        if name and self._is_due(name):
            self._act()

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._active and self._is_due(name):
                if name == "pwrite":  # half of it reaches the file
                    descriptor, data, offset = arguments
                    function(descriptor, data[: len(data) // 2], offset)
                self._act()
            return function(*arguments, **options)

        return call

    def _is_due(self, name: str) -> bool:
        """Counts a step; tells whether it is the one of the fault."""
        number = next(self._numbers)
        self.seen.append(name)
        if name == self._fault.at and not self._at:
            self._at = number + self._fault.later
        return number == self._at

    def _act(self) -> None:
        self._active = False
        fault = self._fault
        if fault.action in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[fault.action])
        elif fault.action == "fill":
            _fill_disk(fault.path)
        elif fault.action == "fill names":
            _fill_names(fault.path)
        elif fault.action == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        elif fault.action == "open files":
            _spend_open_files(fault.spare)
        elif fault.action == "append":
            with Path(fault.path).open("ab") as file:
                file.write(b"\0")
        elif fault.action == "rewrite":
            with Path(fault.path).open("r+b") as file:
                first = file.read(1)
                file.seek(0)
                file.write(first)
        elif fault.action == "truncate":
            os.truncate(fault.path, Path(fault.path).stat().st_size // 2)
        elif fault.action == "remove":
            Path(fault.path).unlink()
        self._active = True


def _fill_disk(path: str) -> None:
    """Writes until the disk has no byte left."""
    block = bytes(1 << 20)
    with Path(path).open("wb", buffering=0) as file:
        while block:
            try:
                file.write(block)
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]


def _fill_names(path: str) -> None:
    """Makes empty files until the disk takes no more."""
    for number in itertools.count():
        try:
            Path(path, str(number)).touch()
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
            return


def _spend_open_files(spare: int) -> None:
    """Lets this process open only so many files more."""
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    held = [os.open("/dev/null", os.O_RDONLY)]
    while held[-1] < highest:
        held.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[-1] + 1 + spare, hard))
