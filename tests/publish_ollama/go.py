"""Go's own encoder as a program: built once with the toolchain from PyPI, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.models import cache_folder

SOURCE = Path(__file__).parent / "oracle" / "main.go"
_PATIENCE_SECONDS = 120


def build_oracle() -> Path:
    """Returns the program made of oracle/main.go; only Go's standard library takes part."""
    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    program = cache_folder() / "go" / f"store-oracle-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        aside = program.with_suffix(f".{os.getpid()}")
        environment = {
            **os.environ,
            "GOCACHE": str(program.parent / "build"),
            "GOTOOLCHAIN": "local",
            "GOPROXY": "off",
            "CGO_ENABLED": "0",
        }
        command = [str(Path(sys.executable).parent / "go"), "build", "-o", str(aside), str(SOURCE)]
        subprocess.run(command, check=True, env=environment, timeout=_PATIENCE_SECONDS)
        aside.replace(program)
    return program


def ask_oracle(program: Path, mode: str, values: Iterable[Any]) -> bytes:
    """Runs the program on JSON values; see main.go for what it does with them."""
    given = "\n".join(json.dumps(value) for value in values).encode()
    command = [str(program), *([mode] if mode else [])]
    done = subprocess.run(command, input=given, capture_output=True, check=True, timeout=30)
    return done.stdout
