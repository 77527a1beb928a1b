"""Who may come in: API keys compared in constant time, or peers on this machine only."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence

from lorapack_gate.answer import RefusedError, Scope
from lorapack_gate.origin import host_of, origin_of

_SCHEME = b"bearer"
_MAX_KEY_BYTES = 4096


def has_key(scope: Scope, digests: Sequence[bytes]) -> bool:
    """Tells whether a request carries one of the keys as `Authorization: Bearer …`.

    Every key is compared, whole and in constant time, so that how long it takes tells nothing.

    Args:
        scope: Of the request.
        digests: SHA-256 of each key.
    """
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return False
    scheme, _, key = given[0].partition(b" ")
    if scheme.lower() != _SCHEME or len(key) > _MAX_KEY_BYTES:
        return False
    digest = hashlib.sha256(key.strip()).digest()
    found = False
    for known in digests:
        found |= hmac.compare_digest(digest, known)
    return found


def check_local(scope: Scope, origins: Sequence[str] = ()) -> None:
    """Refuses peers on other machines, and pages in a browser that only seem to be local.

    Args:
        scope: Of the request.
        origins: Pages of other machines that are allowed all the same.

    Raises:
        RefusedError: The peer, the host that it asked for, or the page is not this machine's.
    """
    peer = (scope.get("client") or ("", 0))[0]
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    page = origin_of(scope)
    from_here = page is None or page in origins or is_loopback(host_of(page))
    local = is_loopback(peer) and all(is_loopback(_host_of(host)) for host in hosts)
    if not (local and from_here):
        raise RefusedError(
            403,
            "this server runs without an API key and answers this machine only",
            kind="permission_error",
            code="not_local",
        )


def is_loopback(host: str) -> bool:
    """Tells whether an address or name is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def missing_key() -> RefusedError:
    """Returns what a request without a right key is told; the same whatever was wrong."""
    return RefusedError(
        401,
        "a valid API key is required: send it as the header Authorization: Bearer …",
        kind="authentication_error",
        code="invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def _host_of(header: str) -> str:
    host, colon, port = header.rpartition(":")
    return host if colon and port.isdecimal() else header
