"""Running another program within a time limit: the one place that starts processes."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from packager.errors import ProcessError

_SHOWN = 300
_KEPT_BYTES = 1 << 14


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
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, timeout=seconds, check=False,
            env=environment, cwd=directory,
        )  # fmt: skip
    except subprocess.TimeoutExpired as problem:
        raise _too_slow(command, seconds) from problem
    except OSError as problem:
        raise _not_started(command, problem) from problem
    if done.returncode != 0:
        raise _failed(command, done.returncode, done.stderr)
    return done.stdout


@contextmanager
def open_program(
    command: Sequence[str],
    *,
    seconds: float,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> Iterator[IO[bytes]]:
    """Runs a program whose output is read while it is made. Leaving the context ends it.

    Only who misses output asks how the program did, by raising EOFError: what has been read is
    whole, whatever becomes of the program afterwards.

    Args:
        command: As of `run_program`, like the others.
        seconds: Time limit, waiting for the reader included.
        given: For its standard input.
        environment: All of its environment, or None for this process's.

    Yields:
        Its standard output.

    Raises:
        ProcessError: It cannot be started, fails, takes too long, or says less than it should.
    """
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as errors:
        told.write(given)
        told.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=told, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        except OSError as problem:
            raise _not_started(command, problem) from problem
        late = threading.Event()
        timer = threading.Timer(seconds, _end, (process, late))
        timer.start()
        try:
            assert process.stdout is not None
            yield process.stdout
        except EOFError as problem:
            process.wait()
            if late.is_set():
                raise _too_slow(command, seconds) from problem
            errors.seek(max(0, errors.seek(0, 2) - _KEPT_BYTES))
            raise _failed(command, process.returncode, errors.read()) from problem
        finally:
            timer.cancel()
            _close(process)


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Ends a program whose output nobody reads any more."""
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()


def _too_slow(command: Sequence[str], seconds: float) -> ProcessError:
    return ProcessError(
        f"{Path(command[0]).name} took too long and was ended",
        where=" ".join(command)[:200],
        expected=f"at most {seconds:.0f} seconds",
        hint="run again on a machine with less other work",
    )


def _not_started(command: Sequence[str], problem: OSError) -> ProcessError:
    return ProcessError(
        f"{Path(command[0]).name} cannot be started",
        where=command[0],
        found=problem.strerror or "an error of the system",
        hint="check that it is installed and may be executed",
    )


def _failed(command: Sequence[str], code: int, errors: bytes) -> ProcessError:
    said = errors.decode(errors="replace").strip().splitlines() or ["nothing"]
    return ProcessError(
        f"{Path(command[0]).name} failed",
        where=" ".join(command)[:200],
        expected="exit code 0 and the whole of its output",
        found=f"{code}; the last line that it printed: {said[-1][:_SHOWN]}",
        hint="run the command by hand to look closer",
    )
