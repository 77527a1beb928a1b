"""A process with everything imported, which forks a child for each command line.

A release takes seconds to import and a fraction of a second to run: forked children make it cheap
to run it hundreds of times, each with one fault of `tests.faults.fault` at one of its steps. What
runs in the child is the real `lorapack`, from its command line to its exit.

Nothing but imports happens here before a fork, since threads of libraries do not survive one.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import Any

from tests.faults.fault import Fault, Steps

PATIENCE_SECONDS = 60
"""A command that takes longer is killed by SIGALRM."""


def serve(channel: socket.socket) -> None:
    """Answers requests, one JSON document each, until the channel is closed."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 3)
        while data and not data.endswith(b"\n"):
            data += channel.recv(1 << 16)
        if not data:
            return
        request = json.loads(data)
        answer = _OPERATIONS[request.pop("op")](request, descriptors)
        channel.sendall(json.dumps(answer).encode() + b"\n")


def _fork(request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    pid = os.fork()
    if pid == 0:
        _run_command(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    return {"pid": pid}


def _wait(request: dict[str, Any], _: list[int]) -> dict[str, Any]:
    _, status = os.waitpid(request["pid"], os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"stopped": True}
    return {"code": os.waitstatus_to_exitcode(status)}


def _resume(request: dict[str, Any], _: list[int]) -> dict[str, Any]:
    os.kill(request["pid"], signal.SIGCONT)
    return {}


def _import(request: dict[str, Any], _: list[int]) -> dict[str, Any]:
    for name in request["modules"]:
        if name not in sys.modules:
            # Some names are made by libraries as they run and cannot be imported.
            with suppress(ImportError, AttributeError):
                importlib.import_module(name)
    gc.freeze()
    return {}


_OPERATIONS = {"fork": _fork, "wait": _wait, "resume": _resume, "import": _import}


def _run_command(request: dict[str, Any], descriptors: list[int]) -> None:
    """Becomes the command: arguments, folder, environment, output, and one fault. Never returns."""
    out, err, report = descriptors
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["lorapack", *request["argv"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(PATIENCE_SECONDS)
    steps = Steps(request["root"], Fault(**request["fault"]))
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    steps.begin()
    code = _exit_code_of_main()
    steps.end()
    document = {"steps": steps.seen, "modules": sorted(sys.modules)}
    with os.fdopen(report, "w", encoding="utf-8") as file:
        json.dump(document, file)
    # As the interpreter does on its way out, but for taking its modules apart, which is slow here.
    threading._shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code_of_main() -> int:
    from packager.cli import main

    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 - shown as the interpreter shows it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
