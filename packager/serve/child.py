"""A server process: started as the head of a group of its own, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from packager.errors import ProcessError, output_error

STOP_SECONDS = 90.0
"""How long a server may take to finish what it is answering; vLLM itself is given 60 seconds."""

_TAIL_BYTES = 1 << 16
_SHOWN_LINES = 12


class Child:
    """A running server.

    Args:
        process: Of it, head of its group.
        log: What it prints.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process.poll() is not None

    def wait(self) -> int:
        """Waits for its end; returns its exit code."""
        return self.process.wait()

    def last_lines(self) -> list[str]:
        """Returns the end of what it printed."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            return [line for line in lines if line.strip()][-_SHOWN_LINES:]
        return []

    def stop(self) -> None:
        """Asks it to finish what it is answering and to end; kills all of it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        # What it started in turn has its group, and may have outlived it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def start_child(
    command: Sequence[str], *, environment: Mapping[str, str], directory: Path, log: Path
) -> Iterator[Child]:
    """Starts a server; leaving the context stops it and whatever it started.

    The server is told who its parent is, and on Linux ends with it even if that is killed. A
    terminal's Ctrl-C reaches the parent only, which then stops the server in order.

    Args:
        command: Program and arguments; no shell takes part.
        environment: All of its environment.
        directory: Where it runs.
        log: File for what it prints; made or emptied.

    Raises:
        OutputError: The log cannot be written.
        ProcessError: The program cannot be started.
    """
    try:
        file = log.open("wb")
    except OSError as problem:
        raise output_error(problem, log) from problem
    with file:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, "LORAPACK_PARENT": str(os.getpid())},
                cwd=directory,
                start_new_session=True,
            )
        except OSError as problem:
            raise ProcessError(
                f"{Path(command[0]).name} cannot be started",
                where=command[0],
                found=problem.strerror or "an error of the system",
                hint="check that it is installed and may be executed",
            ) from problem
    child = Child(process, log)
    try:
        yield child
    finally:
        child.stop()
