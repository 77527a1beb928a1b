"""The errors of lorapack: values with fields, turned into text in one place, `cli.message`.

Every foreseeable failure is a `LorapackError`. It says *what* is wrong, *where*, what was
*expected*, what was *found*, and the next command (`hint`). The class tells the kind, so that
callers can catch one kind without reading text.
"""

from __future__ import annotations

import errno
from pathlib import Path


class LorapackError(Exception):
    """A known failure.

    Args:
        what: What is wrong, as a short clause without a full stop.
        where: The file, tensor, option or address concerned.
        expected: What was wanted there.
        found: What was there.
        hint: The next command or step for the user.
    """

    kind = "error"

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        found: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"in {self.where}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.found:
            parts.append(f"found {self.found}")
        return ", ".join(parts)

    def to_json(self) -> dict[str, str]:
        """Returns the fields as a JSON-ready mapping."""
        return {
            "kind": self.kind,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }


class InputError(LorapackError):
    """A file that a user or a stranger gave is not what it should be."""

    kind = "input"


class UnsafeInputError(InputError):
    """A file could run code or reach outside its folder; it was not opened further."""

    kind = "unsafe-input"


class AdapterError(InputError):
    """The adapter is damaged, incomplete, or does not fit together."""

    kind = "adapter"


class UnsupportedFeatureError(AdapterError):
    """The adapter uses a feature that a wanted target cannot carry."""

    kind = "unsupported-feature"


class BaseError(LorapackError):
    """The base model is damaged, incomplete, or cannot be found."""

    kind = "base"


class BaseMismatchError(BaseError):
    """The base is not the one that the adapter was trained on."""

    kind = "base-mismatch"


class LicenseError(LorapackError):
    """The licence of the release is unknown or contradicts the base's."""

    kind = "license"


class OutputError(LorapackError):
    """The output cannot be written: it exists, the disk is full, or it is read-only."""

    kind = "output"


class BundleError(LorapackError):
    """A bundle is incomplete, altered, or of an unknown schema."""

    kind = "bundle"


class ProofError(LorapackError):
    """An artefact does not behave like base + adapter; the figures are in `found`."""

    kind = "proof"


class WeakEffectError(ProofError):
    """An adapter changes too little for a server to show that it is not the base."""


class HubError(LorapackError):
    """The Hub refused, is out of reach, or holds something else than was sent."""

    kind = "hub"


class OllamaError(LorapackError):
    """An Ollama server refused, is out of reach, or answers something else than expected."""

    kind = "ollama"


class ProcessError(LorapackError):
    """Another program cannot be started, fails, or takes too long."""

    kind = "process"


class RejectedPlanError(LorapackError):
    """A plan has problems; all of them are carried, the first one is the text.

    Args:
        problems: Every problem found, at least one, each an error of its own.
    """

    kind = "plan"

    def __init__(self, problems: tuple[LorapackError, ...]) -> None:
        first = problems[0]
        super().__init__(
            first.what,
            where=first.where,
            expected=first.expected,
            found=first.found,
            hint=first.hint,
        )
        self.kind = first.kind
        self.problems = problems


def output_error(problem: OSError, where: Path) -> OutputError:
    """Returns what a failed write means to a user."""
    hints = {
        errno.ENOSPC: "free some space, or give an --out on another disk",
        errno.EDQUOT: "free some space, or give an --out on another disk",
        errno.EROFS: "give an --out that can be written",
        errno.EACCES: "give an --out that can be written",
        errno.EPERM: "give an --out that can be written",
        errno.ENOTDIR: "give an --out whose parent is a folder",
        errno.EEXIST: "give another --out",
        errno.ENAMETOOLONG: "give a shorter --out",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
        errno.EMFILE: "raise the limit on open files: ulimit -n 4096",
        errno.ENFILE: "close other programs: the machine has no open files left",
    }
    return OutputError(
        "the output cannot be written",
        where=str(where),
        found=problem.strerror or "an I/O error",
        hint=hints.get(problem.errno or 0, "check the disk and run again"),
    )
