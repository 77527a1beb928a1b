"""Where another server is reached: `http://host:port`."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

_PORT = 80


@dataclass(frozen=True)
class Address:
    """A host and a port.

    Attributes:
        host: Name or address, without brackets.
        port: Of TCP.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Returns it as a Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Reads the address of a server.

    Raises:
        ValueError: It is not plain HTTP to a host, or has a path, a query or a user.
    """
    parts = urlsplit(url)
    rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username or "")
    if parts.scheme != "http" or not parts.hostname or any(rest):
        raise ValueError(f"{url!r:.120} is no address of a server: expected http://host:port")
    return Address(parts.hostname, parts.port or _PORT)
