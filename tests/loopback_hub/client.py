"""A process with the real client in it, pointed at a loopback Hub.

huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported, so that a
client needs a process of its own. It stays up and answers many calls.

    with Client(hub, home, token="hf_…") as client:
        remote = client.call(packager.hub.resolve_repo, "org/name")

The function must be importable by name; arguments, result and exception are pickled.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    from tests.loopback_hub.server import LoopbackHub

P = ParamSpec("P")
T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]


class Client:
    """One client process; what it prints lies in `output`.

    Args:
        hub: The Hub that it shall talk to.
        home: Its HF_HOME.
        token: Its HF_TOKEN.
        environment: Further variables.
    """

    def __init__(
        self,
        hub: LoopbackHub,
        home: Path,
        *,
        token: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.token = token
        self.output = home / f"output-{os.urandom(4).hex()}.txt"
        self._environment = {
            **os.environ,
            **hub.environment(home, token=token),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",
            "XDG_CACHE_HOME": str(home / "cache"),
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.loopback_hub.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=self._environment,
                cwd=ROOT,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def with_token(self, token: str | None) -> Client:
        """The same process, called with another token: huggingface_hub reads it every time."""
        other = copy.copy(self)
        other.token = token
        return other

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function in the process; raises what it raises."""
        self.start(function, *args, **kwargs)
        assert self.process.stdout is not None
        kind, value, text = pickle.load(self.process.stdout)
        if kind == "raised":
            value.add_note(text)
            raise value
        return value  # type: ignore[no-any-return]

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Sends a call without waiting for its end; for tests that kill the process."""
        assert self.process.stdin is not None
        name = (function.__module__, function.__qualname__)
        pickle.dump((self.token, name, args, kwargs), self.process.stdin)
        self.process.stdin.flush()

    def refresh(self) -> None:
        """Empties the home and what was printed, so that the next test finds a new client."""
        for path in self.home.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.output:
                path.unlink()
        os.truncate(self.output, 0)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def printed(self) -> str:
        """What the process has written to standard output and error so far."""
        return self.output.read_text(encoding="utf-8")
