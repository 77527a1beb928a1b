"""Several servers that are one: real processes, each of which answers `GET /ready` alone.

How vLLM's own do it is seen in test_mixed; here it is about who is started and stopped, and when.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from packager.errors import InputError, ProcessError
from packager.progress import Silent
from packager.serve.launch import Launch
from packager.serve.memory import share_kv_cache
from packager.serve.port import LOOPBACK, claim_port, free_ports
from packager.serve.server import start_all
from packager.serve.workplace import Workplace
from tests.serve.running import wait_gone

SERVER = """
import http.server, os, signal, sys, time
name, port, deed, journal = sys.argv[1:]
def tell(what):
    with open(journal, "a") as file:
        file.write(f"{what} {name}\\n")
def end(number, frame):
    tell("end")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
tell("start")
print("this is", name, flush=True)
if deed == "dies":
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"ready": true, "proven": true}')
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def launches(folder: Path, *deeds: tuple[str, str]) -> tuple[Launch, ...]:
    journal = folder / "journal"
    ports = free_ports(len(deeds), taken=0)
    made = []
    for (name, deed), port in zip(deeds, ports, strict=True):
        home = folder / (name or "first")
        home.mkdir()
        command = (sys.executable, "-c", SERVER, name or "first", str(port), deed, str(journal))
        place = Workplace(home, None, folder / f"{name or 'first'}.log")
        made.append(Launch(name, name, command, dict(os.environ), place, LOOPBACK, port))
    return tuple(made)


def journal(folder: Path) -> list[str]:
    return (folder / "journal").read_text(encoding="utf-8").splitlines()


def test_neighbours_start_first_and_end_last(tmp_path: Path) -> None:
    given = launches(tmp_path, ("a", "serves"), ("b", "serves"), ("", "serves"))
    with start_all(given, Silent()) as (group, told):
        assert told == {"ready": True, "proven": True}
        assert [member.name for member in group.members] == ["a", "b", ""]
        processes = [psutil.Process(member.child.process.pid) for member in group.members]
    assert journal(tmp_path) == [
        "start a", "start b", "start first", "end first", "end b", "end a",
    ]  # fmt: skip
    assert not wait_gone(processes)
    assert (tmp_path / "b.log").read_text(encoding="utf-8") == "this is b\n"


def test_one_that_ends_later_ends_all_and_is_named(tmp_path: Path) -> None:
    given = launches(tmp_path, ("a", "serves"), ("", "serves"))
    with start_all(given, Silent()) as (group, _):
        processes = [psutil.Process(member.child.process.pid) for member in group.members]
        os.kill(processes[0].pid, signal.SIGKILL)
        error = group.wait().error()
    assert error.what == "the server of a ended by itself"
    assert "exit code -9; the last line that it printed: this is a" in error.found
    assert not wait_gone(processes)


def test_one_that_does_not_start_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    given = launches(tmp_path, ("a", "serves"), ("b", "dies"), ("", "serves"))
    with (
        pytest.raises(ProcessError, match="the server of b ended by itself") as caught,
        start_all(given, Silent()),
    ):
        raise AssertionError
    assert "exit code 3" in caught.value.found
    assert journal(tmp_path) == ["start a", "start b", "end a"]


def test_every_port_is_another() -> None:
    first = claim_port(LOOPBACK, 0)
    ports = free_ports(50, taken=first)
    assert len({first, *ports}) == 51


GIB = 1 << 30


@pytest.mark.parametrize(
    ("told", "weights", "servers", "available", "wanted"),
    [
        # As containers have it, where there is room.
        ("", 1 * GIB, 1, 64 * GIB, 4 * GIB),
        # Half of what weights and runtimes leave, for both together.
        ("", 2 * GIB, 2, 16 * GIB, (16 - 2 - 3) * GIB // 4),
        # Never nothing: vLLM itself says best what is too little.
        ("", 20 * GIB, 2, 16 * GIB, 256 << 20),
        # What the user says is not doubled.
        ("6", 2 * GIB, 1, 16 * GIB, 6 * GIB),
        ("6", 2 * GIB, 2, 16 * GIB, 3 * GIB),
        ("1", 2 * GIB, 3, 16 * GIB, GIB // 3),
    ],
)
def test_memory_is_shared(
    told: str, weights: int, servers: int, available: int, wanted: int
) -> None:
    given = {"VLLM_CPU_KVCACHE_SPACE": told} if told else {}
    assert share_kv_cache(given, weights, servers, available=available) == wanted


@pytest.mark.parametrize("told", ["x", "0", "-1", "1.5"])
def test_wrong_size_of_memory_is_refused_by_name(told: str) -> None:
    with pytest.raises(InputError, match="VLLM_CPU_KVCACHE_SPACE"):
        share_kv_cache({"VLLM_CPU_KVCACHE_SPACE": told}, 0, 1)
