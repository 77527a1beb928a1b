"""Xet storage, as hf_xet calls it: xorbs and shards in, reconstructions and byte ranges out.

Source: huggingface/xet-core at af1a3ff9, openapi/cas.openapi.yaml, and remote_client.rs
(/v2/shards and /v2/reconstructions that are not there make it ask /v1); huggingface_hub 2.4,
utils/_xet.py and hf_xet 1.8 (what a token's answer holds).
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.loopback_hub.access import caller, check_gate, find_repo
from tests.loopback_hub.wire import Call, HttpError, Reply, keep
from tests.loopback_hub.xorb import Term, XetFile, parse_chunks, parse_shard, unpack_chunk

if TYPE_CHECKING:
    from tests.loopback_hub.server import LoopbackHub

_TOKEN = "a-short-lived-token-of-the-xet-storage"
_TOKEN_SECONDS = 3600


def token(hub: LoopbackHub, call: Call) -> Reply:
    """Where the storage is and what opens it; 404 as of a Hub that has none."""
    if not hub.xet:
        raise HttpError(404, "Not Found")
    writes = call.params["kind"] == "write"
    repo = find_repo(hub, call, write=writes)
    check_gate(hub, call, repo)
    caller(hub, call, needed=writes)
    until = int(time.time()) + _TOKEN_SECONDS
    return Reply(
        value={"casUrl": hub.storage_url, "accessToken": _TOKEN, "exp": until},
        headers={
            "X-Xet-Cas-Url": hub.storage_url,
            "X-Xet-Access-Token": _TOKEN,
            "X-Xet-Token-Expiration": str(until),
        },
    )


def file_headers(hub: LoopbackHub, repo: str, commit: str, sha256: str) -> dict[str, str]:
    """What tells a client that it may download a file by Xet; nothing for other files."""
    found = hub.store.root / "xet" / f"{sha256}.json"
    if not hub.xet or not found.is_file():
        return {}
    route = f"{hub.endpoint}/api/models/{repo}/xet-read-token/{commit}"
    return {
        "X-Xet-Hash": json.loads(found.read_text())["xet_hash"],
        "Link": f'<{route}>; rel="xet-auth"',
    }


def put_xorb(hub: LoopbackHub, call: Call) -> Reply:
    _check_token(call)
    assert call.body_file is not None
    place = _xorb(hub, call.params["hash"])
    inserted = not place.exists()
    keep(call.body_file, place)
    return Reply(value={"was_inserted": inserted})


def put_shard(hub: LoopbackHub, call: Call) -> Reply:
    """Puts together the files of a shard; only then they can be committed."""
    _check_token(call)
    for file in parse_shard(call.body):
        data = b"".join(_term_data(hub, term) for term in file.terms)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise HttpError(400, "the file's sha256 is another one")
        hub.store.put_large(data)
        text = json.dumps(asdict(file))
        for name in (file.sha256, file.xet_hash):
            (hub.store.root / "xet" / f"{name}.json").write_text(text)
    return Reply(value={"result": 1})


def reconstruction(hub: LoopbackHub, call: Call) -> Reply:
    """Which chunks of which xorbs make a file, or the part of it that is asked for."""
    _check_token(call)
    found = hub.store.root / "xet" / f"{call.params['hash']}.json"
    if not found.is_file():
        raise HttpError(404, "no such file")
    file = _parse(found)
    start, end = _wanted(call, sum(term.length for term in file.terms))
    terms, offset, at = [], 0, 0
    for term in file.terms:
        if at < end and at + term.length > start:
            offset = start - at if not terms else offset
            terms.append(term)
        at += term.length
    return Reply(
        value={
            "offset_into_first_range": offset,
            "terms": [
                {"hash": term.xorb, "unpacked_length": term.length, "range": _range(term)}
                for term in terms
            ],
            "fetch_info": {
                name: [_fetch_info(hub, term) for term in terms if term.xorb == name]
                for name in {term.xorb for term in terms}
            },
        }
    )


def get_xorb(hub: LoopbackHub, call: Call) -> Reply:
    """The bytes behind a signed address, which needs no token."""
    return Reply(file=_xorb(hub, call.params["hash"]))


def nothing(hub: LoopbackHub, call: Call) -> Reply:
    """Chunks of others are not told, and telemetry is thrown away."""
    if call.method == "GET":
        raise HttpError(404, "not tracked")
    return Reply(value={})


def _wanted(call: Call, size: int) -> tuple[int, int]:
    wanted = call.headers.get("range")
    if wanted is None:
        return 0, size
    start, end = map(int, wanted.removeprefix("bytes=").split("-"))
    if start >= size:
        raise HttpError(416, "the range begins behind the end")
    return start, min(end + 1, size)


def _fetch_info(hub: LoopbackHub, term: Term) -> dict[str, Any]:
    chunks = parse_chunks(_xorb(hub, term.xorb).read_bytes())
    return {
        "range": _range(term),
        "url": f"{hub.storage_url}/signed/{term.xorb}",
        "url_range": {"start": chunks[term.first].start, "end": chunks[term.last - 1].end - 1},
    }


def _range(term: Term) -> dict[str, int]:
    return {"start": term.first, "end": term.last}


def _term_data(hub: LoopbackHub, term: Term) -> bytes:
    place = _xorb(hub, term.xorb)
    if not place.is_file():
        raise HttpError(400, f"xorb {term.xorb} has not arrived")
    xorb = place.read_bytes()
    chunks = parse_chunks(xorb)[term.first : term.last]
    return b"".join(unpack_chunk(xorb, chunk) for chunk in chunks)


def _xorb(hub: LoopbackHub, name: str) -> Path:
    return hub.store.root / "xet" / f"{name}.xorb"


def _parse(path: Path) -> XetFile:
    raw = json.loads(path.read_text())
    return XetFile(raw["xet_hash"], raw["sha256"], tuple(Term(**term) for term in raw["terms"]))


def _check_token(call: Call) -> None:
    # The Hub's own token must not reach the storage; its short-lived one must.
    if call.token != _TOKEN:
        raise HttpError(401, "not a token of this storage")
