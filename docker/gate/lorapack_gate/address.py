"""Where another server is reached: `http://host:port`, and below which path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_PORT = 80
_PATH = re.compile(r"(/[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Address:
    """A host, a port, and a path.

    Attributes:
        host: Name or address, without brackets.
        port: Of TCP.
        path: Before every path of the server, as where Ray Serve has several behind one port.
    """

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        """Returns it as a Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Reads the address of a server.

    Raises:
        ValueError: It is not plain HTTP to a host, or has a query or a user, or its path more
            than words.
    """
    parts = urlsplit(url)
    path, rest = parts.path.rstrip("/"), (parts.query, parts.fragment, parts.username or "")
    if parts.scheme != "http" or not parts.hostname or any(rest) or not _PATH.fullmatch(path):
        raise ValueError(f"{url!r:.120} is no address of a server: expected http://host:port")
    return Address(parts.hostname, parts.port or _PORT, path)
