"""Running `lorapack` in a process of its own, as a shell does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.untrusted import parse_json_object

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """What a command left behind; neither output may hold a traceback."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one document on stdout."""
        return parse_json_object(self.out, where="stdout")


def lorapack(
    *arguments: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> Done:
    """Runs a command with both outputs in pipes, offline."""
    done = subprocess.run(
        [sys.executable, "-m", "packager", *map(os.fspath, arguments)],
        check=False,
        capture_output=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(environment or {})},
    )
    out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert "Traceback" not in out + err, err
    return Done(done.returncode, out, err)
