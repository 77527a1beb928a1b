"""Waiting until a server has been proven, or is known never to be."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from packager.errors import ProofError
from packager.progress import Progress
from packager.serve.group import SHOWN_LETTERS, Group, Member

_PAUSE_SECONDS = 0.2
_ASK_SECONDS = 10.0
_TELL_SECONDS = 15.0
_MAX_BYTES = 4 << 20


def wait_ready(group: Group, host: str, port: int, progress: Progress) -> dict[str, Any]:
    """Waits until `GET /ready` says so; loading may take as long as the weights need.

    Args:
        group: The servers, the one that is waited for last.
        host: Where it is reached.
        port: Likewise.
        progress: Told now and then that it still starts.

    Returns:
        What `/ready` told.

    Raises:
        ProcessError: It ended, or one that had been started before.
        ProofError: It does not serve what was proven; the figures are in `found`.
    """
    begun = told = time.monotonic()
    while (ended := group.find_ended()) is None:
        document = ask_ready(host, port)
        if document.get("ready") is True:
            return document
        if document.get("state") == "failed":
            raise ProofError(
                "the server does not answer as the release was proven to",
                where=f"{host}:{port}",
                found=str(document.get("reason"))[:1000],
                hint="look closer with: lorapack verify BUNDLE; then release again",
            )
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            progress.say(f"still starting after {told - begun:.0f} s{_last(group.newest)}")
        time.sleep(_PAUSE_SECONDS)
    for line in ended.child.last_lines():
        progress.say(f"  {line[:SHOWN_LETTERS]}")
    raise ended.error()


def ask_ready(host: str, port: int) -> dict[str, Any]:
    """Returns what `GET /ready` tells, or nothing where nobody answers yet."""
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_SECONDS)
    try:
        connection.request("GET", "/ready")
        document = json.loads(connection.getresponse().read(_MAX_BYTES))
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return document if isinstance(document, dict) else {}


def _last(member: Member) -> str:
    lines = member.child.last_lines()
    return f": {lines[-1][:160]}" if lines else ""
