"""Errors as text: one line of what, where, expected, found; a blank line; the next command."""

from __future__ import annotations

from packager.errors import LorapackError, RejectedPlanError


def render_error(problem: LorapackError) -> str:
    """Returns the message of an error; a rejected plan shows every problem, one line each."""
    problems = problem.problems if isinstance(problem, RejectedPlanError) else (problem,)
    lines = [f"error: {_one_line(str(item))}" for item in problems]
    hints = list(dict.fromkeys(item.hint for item in problems if item.hint))
    return "\n".join(lines) + "".join(
        f"\n{'' if number else chr(10)}hint: {_one_line(hint)}" for number, hint in enumerate(hints)
    )


def _one_line(text: str) -> str:
    """Keeps a stranger's text from moving the cursor or faking lines."""
    return "".join(char if char.isprintable() else " " for char in text)
