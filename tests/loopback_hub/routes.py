"""The Hub's API, as the installed huggingface_hub client calls it.

Source: huggingface_hub 2.4.0, hf_api.py (whoami, create_repo, model_info, list_repo_tree,
list_repo_commits, get_paths_info, auth_check, update_repo_settings), _commit_api.py (preupload,
commit as NDJSON), lfs.py (batch, basic and multipart upload, verify), file_download.py
(get_hf_file_metadata), utils/_pagination.py, repocard.py (validate).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.loopback_hub import xet
from tests.loopback_hub.access import caller, check_gate, find_repo, may_write
from tests.loopback_hub.card import check_card
from tests.loopback_hub.wire import Call, HttpError, Reply, Route, keep

if TYPE_CHECKING:
    from tests.loopback_hub.server import LoopbackHub
    from tests.loopback_hub.store import Repo, StoredCommit, StoredFile

_PAGE = 50
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_HASH = "(?P<hash>[0-9a-f]{64})"
_REV = r"(?P<rev>[^/]+|refs/pr/\d+)"


def whoami(hub: LoopbackHub, call: Call) -> Reply:
    token = caller(hub, call, needed=True)
    assert token is not None
    access: dict[str, Any] = {"displayName": "test", "role": token.role}
    if token.role == "fineGrained":
        access["fineGrained"] = {
            "canReadGatedRepos": True,
            "global": [],
            "scoped": [
                {"entity": {"type": _entity(hub, name), "name": name}, "permissions": list(rights)}
                for name, rights in token.scopes.items()
            ],
        }
    organisations = [
        {"type": "org", "name": name, "roleInOrg": members[token.user]}
        for name, members in hub.store.organisations.items()
        if token.user in members
    ]
    return Reply(
        value={
            "type": "user",
            "name": token.user,
            "fullname": token.user,
            "orgs": organisations,
            "auth": {"type": "access_token", "accessToken": access},
        }
    )


def _entity(hub: LoopbackHub, name: str) -> str:
    if "/" in name:
        return "model"
    return "org" if name in hub.store.organisations else "user"


def create_repo(hub: LoopbackHub, call: Call) -> Reply:
    token = caller(hub, call, needed=True)
    assert token is not None
    wanted = call.json()
    name = f"{wanted.get('organization') or token.user}/{wanted['name']}"
    if not may_write(hub, token, name):
        raise HttpError(403, f'You don\'t have the rights to create a model under "{name}"')
    url = f"{hub.endpoint}/{name}"
    if name in hub.store.repos:
        raise HttpError(409, "You already created this model repo", url=url)
    hub.store.create_repo(name, private=wanted.get("visibility") == "private")
    return Reply(value={"url": url, "name": name, "id": name})


def validate_yaml(hub: LoopbackHub, call: Call) -> Reply:
    errors, warnings = check_card(call.json()["content"])
    value = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return Reply(400 if errors else 200, value)


def model_info(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call)
    commit = _commit(repo, call.params.get("rev", "main"))
    blobs = "blobs" in call.query
    newest = repo.history(commit.oid)
    return Reply(
        value={
            "_id": hashlib.sha1(repo.name.encode()).hexdigest()[:24],
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.split("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": newest[-1].date,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": hub.store.card_data(commit) or None,
            "siblings": [_sibling(*item, blobs=blobs) for item in sorted(commit.files.items())],
        }
    )


def _sibling(name: str, file: StoredFile, *, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    lfs = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 134}}
    return {
        "rfilename": name,
        "size": file.size,
        "blobId": file.blob_id,
        **(lfs if file.lfs else {}),
    }


def refs(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
        for name, oid in repo.refs.items()
    ]
    return Reply(value={"branches": branches, "converts": [], "tags": []})


def commits(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call)
    history = repo.history(_commit(repo, call.params["rev"]).oid)
    page = int(call.query.get("p", ["0"])[0])
    rows = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
        }
        for commit in history[page * _PAGE : (page + 1) * _PAGE]
    ]
    path = f"/api/models/{repo.name}/commits/{call.params['rev']}"
    return _page(hub, path, rows, page, more=len(history) > (page + 1) * _PAGE)


def tree(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call)
    files = sorted(_commit(repo, call.params["rev"]).files.items())
    page = int(call.query.get("p", ["0"])[0])
    rows = [_entry(name, file) for name, file in files[page * _PAGE : (page + 1) * _PAGE]]
    path = f"/api/models/{repo.name}/tree/{call.params['rev']}"
    return _page(hub, path, rows, page, more=len(files) > (page + 1) * _PAGE)


def _page(hub: LoopbackHub, path: str, rows: list[Any], page: int, *, more: bool) -> Reply:
    link = {"Link": f'<{hub.endpoint}{path}?recursive=True&p={page + 1}>; rel="next"'}
    return Reply(value=rows, headers=link if more else {})


def _entry(name: str, file: StoredFile) -> dict[str, Any]:
    lfs = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}}
    return {
        "type": "file",
        "path": name,
        "size": file.size,
        "oid": file.blob_id,
        **(lfs if file.lfs else {}),
    }


def paths_info(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call)
    commit = _commit(repo, call.params["rev"])
    wanted = parse_qs(call.body.decode()).get("paths", [])
    return Reply(
        value=[_entry(name, commit.files[name]) for name in wanted if name in commit.files]
    )


def auth_check(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call, write="write" in call.params)
    check_gate(hub, call, repo)
    return Reply(value={})


def settings(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call, write=True)
    wanted = call.json()
    if "visibility" in wanted:
        repo.private = wanted["visibility"] == "private"
    if "gated" in wanted:
        repo.gated = bool(wanted["gated"])
    return Reply(value={"private": repo.private})


def preupload(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call, write=True)
    head = _commit(repo, call.params["rev"])
    rows = []
    for file in call.json()["files"]:
        known = head.files.get(file["path"])
        large = hub.store.is_large(file["path"], file["size"])
        row = {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }
        if known is not None:
            row["oid"] = known.sha256 if known.lfs else known.blob_id
        rows.append(row)
    return Reply(value={"files": rows, "commitOid": head.oid})


def lfs_batch(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call, write=True)
    return Reply(
        value={
            "transfer": "basic",
            "objects": [_upload_actions(hub, repo, item) for item in call.json()["objects"]],
        }
    )


def _upload_actions(hub: LoopbackHub, repo: Repo, item: dict[str, Any]) -> dict[str, Any]:
    sha256, size = item["oid"], item["size"]
    row = {"oid": sha256, "size": size, "authenticated": True}
    if hub.store.has_large(sha256):
        return row
    verify = {"href": f"{hub.endpoint}/{repo.name}.git/info/lfs/objects/verify"}
    part_bytes = hub.multipart_bytes
    if part_bytes is None or size <= part_bytes:
        upload: dict[str, Any] = {"href": f"{hub.storage_url}/upload/{sha256}"}
    else:
        count = math.ceil(size / part_bytes)
        parts = {f"{n:05d}": f"{hub.storage_url}/part/{sha256}/{n}" for n in range(1, count + 1)}
        upload = {
            "href": f"{hub.endpoint}/api/complete_multipart/{sha256}",
            "header": {"chunk_size": str(part_bytes), **parts},
        }
    return {**row, "actions": {"upload": upload, "verify": verify}}


def complete_multipart(hub: LoopbackHub, call: Call) -> Reply:
    sha256 = call.params["sha256"]
    folder = hub.store.root / "parts"
    data = b""
    for part in call.json()["parts"]:
        piece = (folder / f"{sha256}-{part['partNumber']}").read_bytes()
        if part["etag"].strip('"') != hashlib.md5(piece).hexdigest():
            raise HttpError(400, "part has another etag")
        data += piece
    if hashlib.sha256(data).hexdigest() != sha256:
        raise HttpError(400, "the parts are not the announced object")
    hub.store.put_large(data)
    return Reply(value={})


def lfs_verify(hub: LoopbackHub, call: Call) -> Reply:
    find_repo(hub, call, write=True)
    wanted = call.json()
    path = hub.store.root / "lfs" / wanted["oid"]
    if not path.is_file() or path.stat().st_size != wanted["size"]:
        raise HttpError(404, "the object has not arrived")
    return Reply(value={})


def commit(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call, write=True)
    token = caller(hub, call)
    assert token is not None
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    with hub.store.lock:
        head = _commit(repo, call.params["rev"])
        if header.get("parentCommit") not in (None, head.oid):
            raise HttpError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            _apply(hub, files, line["key"], line["value"])
        made = hub.store.add_commit(
            repo,
            files,
            title=header["summary"],
            message=header.get("description", ""),
            author=token.user,
            branch=call.params["rev"],
        )
    url = f"{hub.endpoint}/{repo.name}/commit/{made.oid}"
    return Reply(value={"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


def _apply(hub: LoopbackHub, files: dict[str, StoredFile], key: str, value: Any) -> None:
    path = value["path"]
    if key == "file":
        data = base64.b64decode(value["content"])
        if hub.store.is_large(path, len(data)) and data:
            raise HttpError(400, f"{path}: large files must be sent through LFS")
        if path == "README.md" and (errors := check_card(data.decode())[0]):
            raise HttpError(400, f"Invalid metadata in README.md: {errors[0]}")
        files[path] = hub.store.put_small(data)
    elif key == "lfsFile":
        if not hub.store.has_large(value["oid"]):
            raise HttpError(400, f"{path}: LFS pointer points to an object that is not there")
        size = (hub.store.root / "lfs" / value["oid"]).stat().st_size
        files[path] = hub.store.large_file(value["oid"], size)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise HttpError(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[name]
    else:
        raise HttpError(400, f"unknown operation {key}")


def resolve(hub: LoopbackHub, call: Call) -> Reply:
    repo = find_repo(hub, call)
    found = _commit(repo, call.params["rev"])
    check_gate(hub, call, repo)
    file = found.files.get(call.params["path"])
    if file is None:
        raise HttpError(404, "Entry not found", "EntryNotFound")
    headers = {"X-Repo-Commit": found.oid, "Accept-Ranges": "bytes"}
    if not file.lfs:
        return Reply(
            file=hub.store.object_path(file),
            headers={**headers, "ETag": f'"{file.blob_id}"'},
        )
    return Reply(
        302,
        headers={
            **headers,
            **xet.file_headers(hub, repo.name, found.oid, file.sha256),
            "X-Linked-Size": str(file.size),
            "X-Linked-ETag": f'"{file.sha256}"',
            "Location": f"{hub.storage_url}/object/{file.sha256}",
        },
    )


def upload(hub: LoopbackHub, call: Call) -> Reply:
    _refuse_token(call)
    assert call.body_file is not None
    data = call.body_file.read_bytes()
    if hashlib.sha256(data).hexdigest() != call.params["sha256"]:
        raise HttpError(400, "BadDigest")
    keep(call.body_file, hub.store.root / "lfs" / call.params["sha256"])
    return Reply(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})


def part(hub: LoopbackHub, call: Call) -> Reply:
    _refuse_token(call)
    assert call.body_file is not None
    data = call.body_file.read_bytes()
    name = f"{call.params['sha256']}-{call.params['number']}"
    keep(call.body_file, hub.store.root / "parts" / name)
    return Reply(headers={"ETag": f'"{hashlib.md5(data).hexdigest()}"'})


def stored_object(hub: LoopbackHub, call: Call) -> Reply:
    _refuse_token(call)
    path = hub.store.root / "lfs" / call.params["sha256"]
    if not path.is_file():
        raise HttpError(404, "no such object")
    return Reply(file=path, headers={"ETag": f'"{hashlib.md5(path.read_bytes()).hexdigest()}"'})


def _refuse_token(call: Call) -> None:
    # The storage is another host on huggingface.co: a token that reaches it has leaked.
    if "authorization" in call.headers:
        raise HttpError(400, "Only one auth mechanism allowed")


def _commit(repo: Repo, revision: str) -> StoredCommit:
    found = repo.commit(revision)
    if found is None:
        raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


def _route(name: str, methods: str, pattern: str, answer: Any, **more: bool) -> Route:
    return Route(name, tuple(methods.split()), re.compile(pattern), answer, **more)


ROUTES = (
    _route("whoami", "GET", "/api/whoami-v2", whoami),
    _route("create_repo", "POST", "/api/repos/create", create_repo),
    _route("validate_yaml", "POST", "/api/validate-yaml", validate_yaml),
    _route("model_info", "GET", f"/api/models/{_REPO}(/revision/{_REV})?", model_info),
    _route("refs", "GET", f"/api/models/{_REPO}/refs", refs),
    _route("commits", "GET", f"/api/models/{_REPO}/commits/{_REV}", commits),
    _route("tree", "GET", f"/api/models/{_REPO}/tree/{_REV}", tree),
    _route("paths_info", "POST", f"/api/models/{_REPO}/paths-info/{_REV}", paths_info),
    _route("auth_check", "GET", f"/api/models/{_REPO}/auth-check(?P<write>/write)?", auth_check),
    _route("settings", "PUT", f"/api/models/{_REPO}/settings", settings),
    _route("preupload", "POST", f"/api/models/{_REPO}/preupload/{_REV}", preupload),
    _route("commit", "POST", f"/api/models/{_REPO}/commit/{_REV}", commit),
    _route("lfs_batch", "POST", f"/{_REPO}\\.git/info/lfs/objects/batch", lfs_batch),
    _route("lfs_verify", "POST", f"/{_REPO}\\.git/info/lfs/objects/verify", lfs_verify),
    _route(
        "complete_multipart",
        "POST",
        r"/api/complete_multipart/(?P<sha256>[0-9a-f]{64})",
        complete_multipart,
    ),
    _route(
        "xet_token", "GET", f"/api/models/{_REPO}/xet-(?P<kind>read|write)-token/{_REV}", xet.token
    ),
    _route("resolve", "GET HEAD", f"/{_REPO}/resolve/{_REV}/(?P<path>.+)", resolve),
)

STORAGE_ROUTES = (
    _route("upload", "PUT", r"/upload/(?P<sha256>[0-9a-f]{64})", upload, stores_body=True),
    _route(
        "part",
        "PUT",
        r"/part/(?P<sha256>[0-9a-f]{64})/(?P<number>\d+)",
        part,
        stores_body=True,
    ),
    _route("object", "GET HEAD", r"/object/(?P<sha256>[0-9a-f]{64})", stored_object),
    _route("xorb", "POST", f"/v1/xorbs/default/{_HASH}", xet.put_xorb, stores_body=True),
    _route("shard", "POST", "/v1/shards", xet.put_shard),
    _route("reconstruction", "GET", f"/v1/reconstructions/{_HASH}", xet.reconstruction),
    _route("signed", "GET", f"/signed/{_HASH}", xet.get_xorb),
    _route("xet_other", "GET POST", "/v1/(chunks|telemetry).*", xet.nothing),
)
