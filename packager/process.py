"""Running another program within a time limit: the one place that starts processes."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from packager.errors import ProcessError

_SHOWN = 300


def run_program(
    command: Sequence[str],
    *,
    seconds: float,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> bytes:
    """Runs a program to its end and returns what it printed on standard output.

    Args:
        command: Program and arguments; no shell takes part.
        seconds: Time limit; a program that takes longer is killed.
        given: For its standard input.
        environment: All of its environment, or None for this process's.
        directory: Where it runs.

    Raises:
        ProcessError: It cannot be started, fails, or takes too long.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, timeout=seconds, check=False,
            env=environment, cwd=directory,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise ProcessError(
            f"{name} took too long and was ended",
            where=" ".join(command)[:200],
            expected=f"at most {seconds:.0f} seconds",
            hint="run again on a machine with less other work",
        ) from problem
    except OSError as problem:
        raise ProcessError(
            f"{name} cannot be started",
            where=command[0],
            found=problem.strerror or "an error of the system",
            hint="check that it is installed and may be executed",
        ) from problem
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise ProcessError(
            f"{name} failed",
            where=" ".join(command)[:200],
            expected="exit code 0",
            found=f"{done.returncode}; the last line that it printed: {said[-1][:_SHOWN]}",
            hint="run the command by hand to look closer",
        )
    return done.stdout
