"""The tests' side of `tests.faults.forkserver`: start a command, wait for it, read what it said."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.fault import Fault

CHECKOUT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 90


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Exit code; the negative number of the signal that killed it.
        stdout: Data.
        stderr: Talk.
        steps: Names of its file system steps, in order; empty if it was killed.
    """

    code: int
    stdout: str
    stderr: str
    steps: tuple[str, ...]


class Child:
    """A command at work."""

    def __init__(self, runner: Runner, pid: int, pipes: list[int]) -> None:
        self._runner = runner
        self._pipes = pipes
        self.pid = pid

    def wait_until_stopped(self) -> None:
        """Waits for a fault that stops it."""
        assert self._runner.ask("wait", pid=self.pid) == {"stopped": True}

    def resume(self) -> None:
        """Lets it go on."""
        self._runner.ask("resume", pid=self.pid)

    def wait(self) -> Outcome:
        """Waits until it has ended."""
        stdout, stderr, report = (_read_pipe(pipe) for pipe in self._pipes)
        code = self._runner.ask("wait", pid=self.pid)["code"]
        document = json.loads(report) if report else {"steps": [], "modules": []}
        self._runner.modules = document["modules"]
        return Outcome(code, stdout, stderr, tuple(document["steps"]))


class Runner:
    """A fork server of one's own; a context manager."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=CHECKOUT,
                start_new_session=True,
            )
        self._channel.settimeout(_PATIENCE_SECONDS)
        self.modules: list[str] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        os.killpg(self._server.pid, signal.SIGKILL)  # with what a failed test left stopped
        self._server.wait(_PATIENCE_SECONDS)

    def start(
        self,
        argv: list[str],
        *,
        root: Path,
        cwd: Path,
        env: dict[str, str],
        fault: Fault | None = None,
        user: int | None = None,
    ) -> Child:
        """Starts `lorapack` with these arguments.

        Args:
            argv: Without the program's name.
            root: Steps below this folder count.
            cwd: Where it runs.
            env: Set on top of ours.
            fault: What goes wrong.
            user: Numeric user to become first.
        """
        pipes = [os.pipe() for _ in range(3)]
        request = {
            "op": "fork", "argv": argv, "root": str(root), "cwd": str(cwd), "env": env,
            "fault": asdict(fault or Fault()), "user": user,
        }  # fmt: skip
        data = json.dumps(request).encode() + b"\n"
        socket.send_fds(self._channel, [data], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        return Child(self, self._answer()["pid"], [start for start, _ in pipes])

    def import_modules(self, names: list[str]) -> None:
        """Imports in the server, so that children need not."""
        self.ask("import", modules=names)

    def ask(self, operation: str, **arguments: Any) -> Any:
        """Sends one request and returns its answer."""
        self._channel.sendall(json.dumps({"op": operation, **arguments}).encode() + b"\n")
        return self._answer()

    def _answer(self) -> Any:
        data = b""
        while not data.endswith(b"\n"):
            part = self._channel.recv(1 << 16)
            assert part, "the fork server has died"
            data += part
        return json.loads(data)


def _read_pipe(pipe: int) -> str:
    with os.fdopen(pipe, encoding="utf-8") as file:
        return file.read()
