"""Errors as text: one line of what, where, expected, found; a blank line; the next command."""

from __future__ import annotations

import errno

from packager.errors import LorapackError, RejectedPlanError
from packager.verify.figure import printable

_LIMIT_HINTS = {
    errno.EMFILE: "raise the limit on open files: ulimit -n 4096",
    errno.ENFILE: "close other programs: the machine has no open files left",
    errno.ENOMEM: "close other programs, or add --no-behaviour",
}
_SYSTEM_HINTS = {**_LIMIT_HINTS, errno.ENOSPC: "free some space on the disk"}


def render_error(problem: LorapackError) -> str:
    """Returns the message of an error; a rejected plan shows every problem, one line each."""
    problems = problem.problems if isinstance(problem, RejectedPlanError) else (problem,)
    lines = [f"error: {printable(str(item))}" for item in problems]
    hints = list(dict.fromkeys(filter(None, map(_hint, problems))))
    return "\n".join(lines) + "".join(
        f"\n{'' if number else chr(10)}hint: {printable(hint)}" for number, hint in enumerate(hints)
    )


def render_interrupt(signal_name: str) -> str:
    """Returns what is said after Ctrl-C, or after another signal that asks to stop."""
    what = f"interrupted by {signal_name}" if signal_name else "interrupted"
    return f"error: {what}\n\nhint: nothing half-made stays; run the same command again"


def system_error(problem: OSError) -> LorapackError:
    """Returns what the system refused outside of the places that say so themselves."""
    return LorapackError(
        "the system refused",
        where=str(problem.filename or ""),
        found=problem.strerror or type(problem).__name__,
        hint=_SYSTEM_HINTS.get(problem.errno or 0, "check the path, its permissions and the disk"),
    )


def _hint(problem: LorapackError) -> str:
    """Where the machine is at its limits, that is what helps, whatever was being done."""
    cause = problem.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    return _LIMIT_HINTS.get(number or 0, problem.hint)
