"""Memory that is there, from the kernel's own files."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.verify import check
from packager.verify.memory import available_bytes, behaviour_bytes
from tests.models import make_adapter, make_llama

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   16000000 kB\n"


def _cgroup(folder: Path, limit: str) -> Path:
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n", encoding="ascii")
    (folder / "memory.current").write_text("3000000\n", encoding="ascii")
    (folder / "memory.stat").write_text("anon 1000\ninactive_file 500000\n", encoding="ascii")
    return folder


def test_takes_the_machine_or_the_containers_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO, encoding="ascii")
    machine = 16_000_000 * 1024
    none = available_bytes(meminfo=meminfo, cgroup=tmp_path / "none")
    unlimited = available_bytes(meminfo=meminfo, cgroup=_cgroup(tmp_path / "a", "max"))
    limited = available_bytes(meminfo=meminfo, cgroup=_cgroup(tmp_path / "b", "4000000"))
    full = available_bytes(meminfo=meminfo, cgroup=_cgroup(tmp_path / "c", "1000000"))
    assert (none, unlimited, limited, full) == (machine, machine, 1_500_000, 0)


def test_without_proc_the_machines_memory_counts(tmp_path: Path) -> None:
    found = available_bytes(meminfo=tmp_path / "none", cgroup=tmp_path / "none")
    assert found == pytest.approx(psutil.virtual_memory().total, rel=0.01)


def test_agrees_with_psutil_here(tmp_path: Path) -> None:
    found = available_bytes(cgroup=tmp_path / "none")
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_grows_with_the_model_and_the_vocabulary() -> None:
    small, wide = behaviour_bytes(10**9, 32_000), behaviour_bytes(10**9, 256_000)
    assert 4 * 10**9 < small < wide < 9 * 10**9
    assert behaviour_bytes(8 * 10**9, 32_000) - small == pytest.approx(7 * 4.4 * 10**9)


class Heard(Silent):
    """Keeps the lines for the user."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_release_that_does_not_fit_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's figures are given; what they lead to is real."""
    base = make_llama(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    options = ReleaseOptions(targets=("merged",))
    request = ReleaseRequest(((None, adapter),), tmp_path / "out", str(base), options=options)
    monkeypatch.setattr(check, "available_bytes", lambda: 100 << 20)
    heard = Heard()
    made = release(request, heard)
    (target,) = made.proof.targets
    assert target.behaviour is None
    assert target.weights is not None
    reason = target.skipped["behaviour"]
    assert "0.1 GiB are free; run lorapack verify on a larger machine" in reason
    assert f"note: merged/adapter: behaviour not checked: {reason}" in heard.lines
    report = (tmp_path / "out/report/report.html").read_text(encoding="utf-8")
    assert "0.1 GiB are free" in report
    card = (tmp_path / "out/merged/adapter/README.md").read_text(encoding="utf-8")
    assert "**Not checked:** behaviour" in card
