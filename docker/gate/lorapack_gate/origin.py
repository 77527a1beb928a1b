"""Pages in browsers: which web sites' scripts may ask this server.

None may, unless LORAPACK_ALLOWED_ORIGINS lists them. A browser asks before it sends a key, without
one (OPTIONS, the preflight), so that this has to be answered before keys are looked at.

Source: WHATWG Fetch, section 3.3, the CORS protocol: in Access-Control-Allow-Headers, `*` stands
for every name but Authorization.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from lorapack_gate.answer import Headers, Message, Scope, Send, send_bytes

ANY = "*"

_AGE_SECONDS = 600


def parse_origins(text: str) -> tuple[str, ...]:
    """Reads origins, separated by commas.

    Args:
        text: Such as `https://app.example,http://localhost:3000`, or `*` for every page.

    Raises:
        ValueError: One has a path or no scheme, as no browser sends it.
    """
    origins = tuple(item.strip() for item in text.split(",") if item.strip())
    for origin in origins:
        parts = urlsplit(origin)
        plain = parts.hostname and origin == f"{parts.scheme}://{parts.netloc}"
        if origin != ANY and not (plain and parts.scheme in ("http", "https")):
            raise ValueError(
                f"{origin!r:.80} is no origin: expected https://host or https://host:port"
            )
    return origins


def origin_of(scope: Scope) -> str | None:
    """Returns which page a request comes from; None where no browser says so."""
    given = [value for name, value in scope["headers"] if name == b"origin"]
    return given[0].decode("latin-1") if given else None


def host_of(origin: str) -> str:
    """Returns the host of a page; nothing where it has none, such as a file's."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def allowed_headers(scope: Scope, origins: Sequence[str]) -> Headers:
    """Returns what an answer carries so that a browser hands it to the page; nothing by default.

    Args:
        scope: Of the request.
        origins: Those that are allowed.
    """
    origin = origin_of(scope)
    if origin is None or not {origin, ANY}.intersection(origins):
        return ()
    allowed = ANY if ANY in origins else origin
    return (
        (b"access-control-allow-origin", allowed.encode("latin-1")),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    )


def is_preflight(scope: Scope) -> bool:
    """Tells whether a browser asks what a page may send."""
    asked = any(name == b"access-control-request-method" for name, _ in scope["headers"])
    return bool(scope["method"] == "OPTIONS" and asked)


async def send_preflight(send: Send, methods: Sequence[str], headers: Headers) -> None:
    """Answers what a page may send: any header, its key included."""
    told = (
        *headers,
        (b"access-control-allow-methods", ", ".join(methods).encode()),
        (b"access-control-allow-headers", b"*, authorization"),
        (b"access-control-max-age", str(_AGE_SECONDS).encode()),
    )
    await send_bytes(send, 204, b"", told)


def with_headers(send: Send, headers: Headers) -> Send:
    """Returns a channel that adds headers to the answer."""
    if not headers:
        return send

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return sending
