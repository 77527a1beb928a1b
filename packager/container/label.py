"""Names of things in containers and clusters."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_MAX_CHARS = 40
_NEITHER = re.compile(r"[^a-z0-9]+")


def resource_name(name: str) -> str:
    """Returns a name that images, compose projects and Kubernetes objects may have.

    At most 40 letters, digits and dashes, so that there is room for endings; a name that is too
    long or says nothing gets a digest.

    Source: Kubernetes 1.37, RFC 1035 labels of Services; OCI distribution-spec 1.1, <name>.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    # Of org/name, the name: the organisation says little about what is served.
    short = _NEITHER.sub("-", plain.rpartition("/")[2]).strip("-")
    if short and short[0].isalpha() and len(short) <= _MAX_CHARS:
        return short
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    stem = f"model-{short}" if not short[:1].isalpha() else short
    return f"{stem[: _MAX_CHARS - 9].rstrip('-')}-{digest}"
