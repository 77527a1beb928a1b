"""Ports to listen on."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from packager.errors import InputError

LOOPBACK = "127.0.0.1"


def claim_port(host: str, port: int) -> int:
    """Returns a port that can be listened on: the given one, or for 0 any.

    Raises:
        InputError: Somebody listens there already, or the address is not this machine's.
    """
    try:
        # A name, such as localhost, may stand for several addresses; the first one counts.
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as problem:
        raise InputError(
            "there is no listening there",
            where=f"{host} port {port}",
            found=problem.strerror or "an error of the system",
            hint="give another --port, or --port 0 for any that is free",
        ) from problem


def free_ports(count: int, *, taken: int) -> tuple[int, ...]:
    """Returns ports of this machine at which nobody listens, each another.

    Args:
        count: How many.
        taken: One that somebody is about to listen on.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
            if port != taken:
                ports.append(port)
        return tuple(ports)
