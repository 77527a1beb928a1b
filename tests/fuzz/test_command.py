"""The real program on hostile inputs: exit code 1, an error and a hint, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.conftest import Sources

PROGRAM = [sys.executable, "-m", "packager"]
Damage = Callable[[Sources], None]


def _config(text: bytes) -> Damage:
    return lambda sources: (sources.adapter / "adapter_config.json").write_bytes(text) and None


def _weights(data: bytes) -> Damage:
    return lambda sources: (
        (sources.adapter / "adapter_model.safetensors").write_bytes(data) and None
    )


def _base_config(text: bytes) -> Damage:
    return lambda sources: (sources.base / "config.json").write_bytes(text) and None


def _manifest(text: bytes) -> Damage:
    return lambda sources: (sources.bundle / "lorapack.json").write_bytes(text) and None


CASES: dict[str, tuple[str, Damage]] = {
    "adapter config nested": ("inspect", _config(b'{"peft_type":' * 90_000)),
    "adapter config of surrogates": ("inspect", _config(b'{"peft_type": "\\ud800"}')),
    "adapter config of odd types": ("inspect", _config(b'{"peft_type": "LORA", "r": "\\u0000"}')),
    "adapter config empty": ("inspect --json", _config(b"")),
    "pickle": ("inspect", _weights(b"\x80\x05cos\nsystem\n(S'touch ran'\ntR.")),
    "endless header": ("inspect", _weights((1 << 63).to_bytes(8, "little") + b"{}")),
    "base config nested": ("plan", _base_config(b"[" * 90_000)),
    "base config of odd types": ("plan --json", _base_config(b'{"quantization_config": [1]}')),
    "base config not UTF-8": ("plan", _base_config(b"\xff\xfe")),
    "manifest of odd types": ("verify", _manifest(b'{"schema_version": 1, "base": [[]]}')),
    "manifest not JSON": ("verify --json", _manifest(b"\x00")),
}


def _argv(command: str, sources: Sources) -> list[str]:
    name, *flags = command.split()
    place = sources.bundle if name == "verify" else sources.adapter
    base = [] if name == "verify" else ["--base", str(sources.base)]
    return [*PROGRAM, name, str(place), *base, *flags]


def _environment(tmp_path: Path) -> dict[str, str]:
    checkout = str(Path(__file__).resolve().parents[2])
    cache = str(tmp_path / "cache")
    return {**os.environ, "PYTHONPATH": checkout, "XDG_CACHE_HOME": cache, "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("name", CASES)
def test_program_says_what_is_wrong(copies: Sources, tmp_path: Path, name: str) -> None:
    command, damage = CASES[name]
    damage(copies)
    done = subprocess.run(
        _argv(command, copies),
        capture_output=True,
        cwd=tmp_path,
        env=_environment(tmp_path),
        timeout=60,
        check=False,
    )
    said = done.stderr.decode("utf-8")
    assert done.returncode == 1, said
    assert "Traceback" not in said
    assert "error: " in said
    assert "\nhint: " in said
    assert done.stdout == b""
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.6])
def test_program_that_is_stopped_leaves_nothing(
    copies: Sources, tmp_path: Path, number: signal.Signals, seconds: float
) -> None:
    """From the outside: while it imports torch, reads, writes or proves."""
    out = tmp_path / "made" / "out"
    argv = [
        *PROGRAM, "release", str(copies.adapter), "--base", str(copies.base), "--out", str(out),
        "--no-behaviour",
    ]  # fmt: skip
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=_environment(tmp_path)
    ) as program:
        assert program.stderr is not None
        assert program.stderr.readline().startswith(b"note: ")  # it has planned
        time.sleep(seconds)
        program.send_signal(number)
        said = program.stderr.read().decode("utf-8")
    assert "Traceback" not in said
    if out.exists():  # it was faster
        assert json.loads((out / "lorapack.json").read_bytes())["files"]
        return
    assert program.returncode == 1, said
    assert "error: interrupted" in said
    assert "\nhint: " in said
    assert not out.parent.exists()
