"""Asks a running server how it is: `python3 -m lorapack_gate.check [live|ready] [--port 8000]`.

For a container's HEALTHCHECK: images of servers bring no curl. Exit code 0 or 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections.abc import Sequence

_PATHS = {"live": "/health", "ready": "/ready"}
_SECONDS = 5.0
_MAX_BYTES = 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Prints the reason where the server is not what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lorapack_gate.check", description=__doc__)
    parser.add_argument("what", nargs="?", choices=sorted(_PATHS), default="ready")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(arguments)
    connection = http.client.HTTPConnection("127.0.0.1", given.port, timeout=_SECONDS)
    try:
        connection.request("GET", _PATHS[given.what])
        response = connection.getresponse()
        body = response.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException) as problem:
        sys.stdout.write(f"no answer: {problem}\n")
        return 1
    finally:
        connection.close()
    if response.status != 200:
        sys.stdout.write(f"{reason_of(body) or f'status {response.status}'}\n")
    return int(response.status != 200)


def reason_of(body: bytes) -> str:
    """Returns the reason that `GET /ready` told, or nothing."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    reason = document.get("reason") if isinstance(document, dict) else None
    return reason if isinstance(reason, str) else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
