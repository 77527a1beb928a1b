"""Running a whole process and reading what the kernel counted for it."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LORAPACK = (sys.executable, "-m", "packager")
PEFT = (sys.executable, "-m", "tests.bench.peft_merge")


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        seconds: From start to end, with what it wrote on the disk.
        cpu_seconds: User and system.
        peak_bytes: Largest resident set.
        written_bytes: Handed to the file system for writing, as the kernel counts blocks.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int


def run(command: Sequence[str], *, cache: Path, sync: bool = False) -> Run:
    """Runs a command to its end; `cache` is emptied first, so that nothing is remembered.

    Args:
        command: Program and arguments.
        cache: Becomes XDG_CACHE_HOME.
        sync: Whether to wait until everything is on the disk, for programs that do not.
    """
    shutil.rmtree(cache, ignore_errors=True)
    os.sync()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    peak = _PeakMemory(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if sync:
        os.sync()
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return Run(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(usage.ru_maxrss * 1024, peak.stop()),
        written_bytes=usage.ru_oublock * 512,
    )


class _PeakMemory:
    """Watches VmHWM, which the kernel forgets with the process."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            try:
                lines = self._status.read_text(encoding="ascii").splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("VmHWM:"):
                    self._peak = max(self._peak, int(line.split()[1]) * 1024)


def paired(count: int, contenders: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
    """Runs contenders in turn, A B C A B C …, so that a drifting machine meets all alike."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for number in range(count):
        for name, start in contenders.items():
            runs[name].append(start())
            last = runs[name][-1]
            print(
                f"  {number + 1}/{count} {name:<18} {last.seconds:6.1f} s  "
                f"cpu {last.cpu_seconds:6.1f} s  peak {last.peak_bytes / 2**30:5.2f} GiB  "
                f"written {last.written_bytes / 1e9:5.2f} GB",
                flush=True,
            )
    return runs


def median_seconds(runs: Sequence[Run]) -> float:
    """The median of the wall times."""
    return statistics.median(item.seconds for item in runs)


def median_ratio(first: Sequence[Run], second: Sequence[Run]) -> float:
    """The median of the ratios, pair by pair."""
    return statistics.median(a.seconds / b.seconds for a, b in zip(first, second, strict=True))
