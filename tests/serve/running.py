"""`lorapack serve` in a process of its own, as a person would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from packager.digest import hash_files
from packager.manifest import MANIFEST_NAME

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 600
STOP_SECONDS = 100


@dataclass
class Running:
    """A server that has said that it is ready.

    Attributes:
        process: `lorapack serve` itself.
        document: What it printed.
        key: Its API key, or nothing.
        errors: File that its standard error goes to.
        log: File that the engine's output goes to.
    """

    process: subprocess.Popen[str]
    document: dict[str, Any]
    key: str
    errors: Path
    log: Path

    @property
    def url(self) -> str:
        return str(self.document["url"])

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def family(self) -> list[psutil.Process]:
        """Returns the process with all that it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def ask(
        self, path: str, *, method: str = "GET", key: str | None = None, body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Sends one request; returns status, headers and body."""
        headers = {"Content-Type": "application/json"}
        if key is None:
            key = self.key
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.root + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, dict(refusal.headers), refusal.read()

    def stop(self, number: int = signal.SIGINT) -> int:
        """Asks it to stop; returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPYCACHEPREFIX"}
    further = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    # What the tests were given to import, such as a client's package, is for their children too.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, **further, "PYTHONPATH": os.pathsep.join(paths)}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "packager", "serve", *map(os.fspath, arguments)]


@contextmanager
def serving(folder: Path, *arguments: str | Path) -> Iterator[Running]:
    """Runs `lorapack serve … --json`; kills what is left of it at the end."""
    errors, log = folder / "stderr.txt", folder / "engine.log"
    with errors.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(*arguments, "--json", "--port", "0", "--log", log),
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment(),
        )
    try:
        document = _read_document(process, errors)
        key_file = document["key_file"]
        lines = [] if key_file is None else Path(key_file).read_text(encoding="ascii").split()
        yield Running(process, document, lines[0] if lines else "", errors, log)
    finally:
        if process.poll() is None:
            left = [process.pid, *(p.pid for p in psutil.Process(process.pid).children(True))]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for number in left:
                    os.kill(number, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def _read_document(process: subprocess.Popen[str], errors: Path) -> dict[str, Any]:
    assert process.stdout is not None
    text = ""
    latest = time.monotonic() + START_SECONDS
    while time.monotonic() < latest:
        line = process.stdout.readline()
        assert line, errors.read_text(encoding="utf-8")
        text += line
        if line == "}\n":
            return dict(json.loads(text))
    raise AssertionError(text)


def wait_gone(processes: list[psutil.Process], seconds: float = 30) -> list[psutil.Process]:
    """Returns which of the processes still run after a while; zombies are gone."""
    latest = time.monotonic() + seconds
    left = processes
    while left and time.monotonic() < latest:
        left = [process for process in left if _runs(process)]
        time.sleep(0.05)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def copy_bundle(bundle: Path, out: Path) -> Path:
    """Copies a bundle file by file; files are small, and none is shared."""
    for path in bundle.rglob("*"):
        if path.is_file():
            copy = out / path.relative_to(bundle)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return out


def adopt_file(bundle: Path, name: str) -> None:
    """Lets the manifest say that a file is as it should be."""
    path = bundle / MANIFEST_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    entry = hash_files(bundle, [name], remember=False)[0]
    for item in document["files"]:
        if item["path"] == name:
            item.update(size=entry.size, sha256=entry.sha256)
    path.write_text(json.dumps(document), encoding="utf-8")
    (bundle / name).chmod(0o644)
