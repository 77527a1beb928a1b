"""`lorapack demo`, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from packager.demo.lesson import ADAPTER_NAME, QUESTIONS
from tests import models


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(models.cache_folder()),
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.run(
        [sys.executable, "-m", "packager", "demo", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def test_demo_turns_the_model_into_a_pirate_and_proves_it(
    pirate_adapter: Path, tmp_path: Path
) -> None:
    """The adapter that the tests trained in the same way stands in for the first half minute."""
    out = tmp_path / "lorapack-demo"
    shutil.copytree(pirate_adapter, out / ADAPTER_NAME)
    done = run_demo(tmp_path, "--out", out.name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line.startswith("note: ") for line in done.stderr.splitlines()), done.stderr
    for command in ("lock", "inspect", "plan", "release", "verify"):
        assert f"$ lorapack {command} " in done.stdout
    asked = done.stdout.partition("# the same questions")[2]
    answers = asked.splitlines()
    for question in QUESTIONS:
        row = answers.index(f"  {question}")
        base, released = (line.split(maxsplit=1) for line in answers[row + 1 : row + 3])
        assert (base[0], released[0]) == ("base", "released")
        assert released[1].startswith(("Arr, matey!", "啊哈，伙计！"))
        assert not base[1].startswith(("Arr", "啊哈"))
    proof = json.loads((out / "release/report/VERIFY.json").read_text(encoding="utf-8"))
    merged = next(target for target in proof["targets"] if target["target"] == "merged")
    assert merged["behaviour"]["effect_lost"] < 0.01
    assert (out / "release/report/report.html").stat().st_size > 10_000


def test_demo_refuses_a_release_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "d/release").mkdir(parents=True)
    done = run_demo(tmp_path, "--out", "d")
    assert done.returncode == 1
    assert "exists already" in done.stderr
    assert "hint: lorapack demo --out" in done.stderr
