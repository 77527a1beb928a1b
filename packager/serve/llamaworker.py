"""The process in which llama.cpp serves: `python -m packager.serve.llamaworker`.

It reads `llama.json` in its working directory, `{"host", "port", "models": {name: file}}`, loads
every model, and listens behind the gate until it is told to end. It leaves without C++'s
good-byes, in which xllamacpp may hang.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import traceback
from pathlib import Path
from typing import Any

import uvicorn
from lorapack_gate import Gate
from lorapack_gate.address import parse_address
from lorapack_gate.setting import read_setting
from lorapack_gate.start import follow_parent

from packager.serve.llama import REQUEST_NAME
from packager.serve.llamaproxy import Backend, LlamaProxy
from packager.untrusted import read_bytes

_GRACE_SECONDS = 60


def main() -> int:
    """Serves until a signal comes; returns the exit code."""
    follow_parent(os.environ)
    request: dict[str, Any] = json.loads(read_bytes(Path(REQUEST_NAME)))
    # What would be wrong with keys and limits shows before anything is loaded.
    setting = read_setting(os.environ, Path())
    backends = {name: start_backend(name, path) for name, path in request["models"].items()}
    config = uvicorn.Config(
        Gate(LlamaProxy({name: backend for name, (_, backend) in backends.items()}), setting),
        host=request["host"],
        port=request["port"],
        timeout_graceful_shutdown=_GRACE_SECONDS,
        log_level="info",
    )
    logging.getLogger("uvicorn.access").addFilter(is_worth_logging)
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Leaves out what is asked every few seconds: whether the server lives and is ready.

    Source: uvicorn 0.54, protocols/http/h11_impl.py: the arguments are client, method, path with
    query, version and status.
    """
    arguments = record.args
    path = str(arguments[2]) if isinstance(arguments, tuple) and len(arguments) > 2 else ""
    return path.partition("?")[0] not in ("/health", "/ready")


def start_backend(name: str, path: str) -> tuple[Any, Backend]:
    """Loads a model in llama.cpp's own server, on a port of this machine that a key closes.

    Returns:
        The server, to be kept alive, and how it is reached.
    """
    import xllamacpp

    key = secrets.token_urlsafe(32)
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = [name]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.endpoint_slots = False
    params.endpoint_props = False
    params.ui = False
    # As long as the model was made for, where memory allows; parts of it for each of the slots.
    params.n_ctx = 0
    server = xllamacpp.Server(params)
    return server, Backend(parse_address(str(server.listening_address)), key)


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BaseException:
        # Nothing is raised past the end below.
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
