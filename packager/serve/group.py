"""Several server processes as one: whoever of them ends, ends all."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from packager.errors import ProcessError
from packager.serve.child import Child

SHOWN_LETTERS = 300

_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Member:
    """One of them.

    Attributes:
        name: The model that it alone serves; empty for the one that is talked to.
        child: Its process.
    """

    name: str
    child: Child

    def error(self) -> ProcessError:
        """Returns what it means to a user that it has ended by itself."""
        last = self.child.last_lines()[-1:]
        said = f"; the last line that it printed: {last[0][:SHOWN_LETTERS]}" if last else ""
        return ProcessError(
            f"the server{f' of {self.name}' if self.name else ''} ended by itself",
            expected="one that runs until it is stopped",
            found=f"exit code {self.child.wait()}{said}",
            hint="keep all of what it prints with --log FILE, and look for its first error",
        )


@dataclass
class Group:
    """All that have been started so far, in that order."""

    members: list[Member] = field(default_factory=list)

    @property
    def newest(self) -> Member:
        """The one that was started last."""
        return self.members[-1]

    def find_ended(self) -> Member | None:
        """Returns one that has ended by itself."""
        return next((member for member in self.members if member.child.ended), None)

    def wait(self) -> Member:
        """Waits as long as all of them run; returns the first that ends."""
        while (ended := self.find_ended()) is None:
            time.sleep(_PAUSE_SECONDS)
        return ended
