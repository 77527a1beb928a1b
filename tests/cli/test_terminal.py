"""What a person sees on a terminal: bars while there is something to wait for, then the lines."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from tests.cli.command import ROOT
from tests.models import make_adapter, make_llama

WIDTH = 100


def on_terminal(*arguments: str | Path) -> tuple[int, str, str]:
    """Runs lorapack with standard error on a terminal; returns code, standard output, error."""
    screen, keyboard = pty.openpty()
    termios.tcsetwinsize(keyboard, (40, WIDTH))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-m", "packager", *map(os.fspath, arguments)]
        process = subprocess.Popen(command, stdout=out, stderr=keyboard, env=environment)
        os.close(keyboard)
        shown = b""
        while part := _read(screen):
            shown += part
        os.close(screen)
        code = process.wait(60)
        out.seek(0)
        return code, out.read().decode(), shown.decode()


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 1 << 16)
    except OSError:
        # Linux says so where others say that there is nothing more.
        return b""


def test_bars_are_drawn_on_a_terminal_and_stay_off_stdout(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    code, out, shown = on_terminal(
        "release", adapter, "--base", base, "--out", tmp_path / "out", "--target", "merged",
        "--json",
    )  # fmt: skip
    assert code == 0, shown
    assert json.loads(out)["schema_version"] == 1
    for stage in ("identify the base", "merge adapter", "check files"):
        assert stage in shown
    assert "100%|" in shown
    assert "Traceback" not in shown
    left = [line.rpartition("\r")[2] for line in shown.replace("\r\n", "\n").split("\n")]
    assert not any("identify" in line for line in left)
    for line in left:
        assert "%|" not in line or ("note: " not in line and len(line) <= WIDTH), line


def test_an_error_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", license_id=None)
    adapter = make_adapter(base, tmp_path / "adapter")
    code, out, shown = on_terminal("release", adapter, "--base", base, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    lines = shown.replace("\r\n", "\n").split("\n")
    assert any(
        line.rpartition("\r")[2].startswith("error: the base does not say") for line in lines
    )
    assert any(line.startswith("hint: ") for line in lines)
