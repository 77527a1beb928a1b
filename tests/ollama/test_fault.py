"""A GGUF release that is killed or runs out of disk in the middle of a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command import ROOT

Small = tuple[Path, Path]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def command(small: Small, out: Path) -> list[str]:
    base, adapter = small
    return [
        sys.executable, "-m", "packager", "release", str(adapter), "--base", str(base),
        "--target", "ollama", "--quant", "F32", "--quant", "Q4_K_M", "--quant", "Q6_K",
        "--no-behaviour", "--threads", "1", "--out", str(out),
    ]  # fmt: skip


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_that_may_not_grow_is_an_error_and_nothing_stays(
    small: Small, tmp_path: Path
) -> None:
    limit = "import resource, runpy, sys; n = 1 << 20; sys.argv[0] = 'lorapack'; "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); runpy.run_module('packager', "
    limit += "run_name='__main__')"
    argv = [sys.executable, "-c", limit, *command(small, tmp_path / "out")[3:]]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: the output cannot be written" in done.stderr
    assert "File too large" in done.stderr
    assert "hint: raise the limit on the size of files" in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_release_ended_within_a_file_leaves_no_bundle(
    small: Small, tmp_path: Path, how: signal.Signals
) -> None:
    argv = command(small, tmp_path / "out")
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    staged = tmp_path / ".out.lorapack/ollama/pirate/pirate-Q6_K.gguf"
    last = time.monotonic() + 60
    while not staged.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < last
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if how == signal.SIGTERM:
        assert process.returncode == 1
        assert errors.count("error: interrupted") == 1
        assert listing(tmp_path) == []
    again = subprocess.run(argv, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert again.returncode == 0, again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out/ollama/pirate").glob("*.gguf"))) == 3
