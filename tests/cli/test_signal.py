"""A signal that arrives where the interpreter would end by it even though it was handled."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, types, click
import packager.cli
module = types.ModuleType("packager.cli.inspect")
@click.command("inspect")
def command():
    exec("import os, signal, time; os.kill(os.getpid(), signal.{name}); time.sleep(30)")
module.command = command
sys.modules["packager.cli.inspect"] = module
sys.argv = ["lorapack", "inspect"]
packager.cli.main()
"""


@pytest.mark.parametrize(("name", "said"), [("SIGINT", ""), ("SIGTERM", " by SIGTERM")])
def test_signal_within_exec_of_a_string_ends_with_1(name: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{name}", name)],
        capture_output=True, text=True, encoding="utf-8", check=False, timeout=25,
    )  # fmt: skip
    assert done.stderr.startswith(f"error: interrupted{said}\n\nhint: ")
    assert done.returncode == 1
