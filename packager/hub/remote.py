"""One repository of the Hub at one commit: resolved once, with every file's size and digest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from packager.errors import BaseError, HubError, InputError
from packager.frontmatter import parse_front_matter, text_value
from packager.hub.client import HubRefusedError, ask, clean_text, client, endpoint
from packager.untrusted import check_relative_name, read_text

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """One file as the Hub announces it.

    Attributes:
        name: Relative POSIX path.
        size: In bytes.
        sha256: Of the content, for large files (LFS, Xet); None for small ones.
        git_blob_id: 40 hexadecimal digits; of the content for small files, of the pointer for
            large ones. None where only the local cache was there to ask.
    """

    name: str
    size: int
    sha256: str | None
    git_blob_id: str | None


@dataclass(frozen=True)
class RemoteRepo:
    """A repository at one commit.

    Attributes:
        repo: `org/name`.
        commit: 40 hexadecimal digits.
        requested_revision: What was asked for, or None for the default branch.
        floating: Whether what was asked for can point elsewhere tomorrow (branch, tag, nothing).
        gated: Whether the Hub asks for an agreement before download.
        license: The card's licence id, or None.
        license_name: The card's own name for a licence that is `other`, or None.
        files: Every file of the commit, in name order.
        last_modified: When the commit's repository was last changed, or None when offline.
        source: Whether the Hub answered, or the local cache stood in for it.
    """

    repo: str
    commit: str
    requested_revision: str | None
    floating: bool
    gated: bool
    license: str | None
    license_name: str | None
    files: tuple[RemoteFile, ...]
    last_modified: datetime | None
    source: Literal["hub", "cache"]


def check_repo_id(repo: str) -> str:
    """Returns `repo` if it can be the name of a repository, by the client's own rules.

    Raises:
        HubError: It cannot.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if valid:
        return repo
    raise HubError(
        "this cannot be the name of a repository",
        expected="USER/NAME of letters, digits, '-', '_' and '.', at most 96 characters",
        found=clean_text(repr(repo))[:120],
        hint="correct the name",
    )


def resolve_repo(repo: str, revision: str | None = None) -> RemoteRepo:
    """Resolves a repository and revision to one commit, once.

    Without the Hub (HF_HUB_OFFLINE, or nothing answers), a snapshot in the local cache stands in.
    Whether a repository is gated is then read from its card, which is all that is there to read.

    Args:
        repo: `org/name`.
        revision: Branch, tag or commit; None for the default branch.

    Raises:
        BaseError: No such repository or revision, gated, a wrong token, or offline without a
            cached snapshot. The hint is the next command.
        UnsafeInputError: A file name leads outside its folder.
    """
    check_repo_id(repo)
    try:
        info = ask(lambda: client().model_info(repo, revision=revision, files_metadata=True))
    except HubRefusedError as refusal:
        cached = _cached_repo(repo, revision) if refusal.refused == "offline" else None
        if cached is None:
            raise base_error(refusal, repo, revision) from None
        return cached
    return _parse_info(repo, revision, info)


def base_error(refusal: HubRefusedError, repo: str, revision: str | None) -> BaseError:
    """Returns the error that a user of a base sees for a refusal, with the next command."""
    page = f"{endpoint()}/{repo}"
    pinned = f"{repo} --revision {revision}" if revision else repo
    later = "run the same command again in a few minutes"
    hints = {
        "offline": f"with a network: hf download {pinned}; then run again",
        "gated": f"accept the terms at {page}, then: hf auth login",
        "no-repo": f"check the name {repo!r}; if it is private: hf auth login",
        "no-revision": f"choose one from {page}/commits",
        "no-file": f"look at {page}/tree/{revision or 'main'}",
        "forbidden": f"let the token read {repo} at {endpoint()}/settings/tokens; hf auth login",
        "busy": later,
        "broken": later,
    }
    return BaseError(
        refusal.what,
        where=f"{page}@{revision}" if revision else page,
        found=refusal.found,
        hint=hints.get(refusal.refused, refusal.hint),
    )


def _parse_info(repo: str, revision: str | None, info: Any) -> RemoteRepo:
    where = f"{endpoint()}/{repo}"
    if not COMMIT.fullmatch(info.sha or ""):
        raise BaseError(
            "the Hub names no commit",
            where=where,
            found=repr(info.sha)[:80],
            hint="check HF_ENDPOINT: this may not be a Hub",
        )
    files = tuple(
        RemoteFile(
            name=check_relative_name(item.rfilename, where=where),
            size=int(item.size or 0),
            sha256=item.lfs.sha256 if item.lfs is not None else None,
            git_blob_id=item.blob_id,
        )
        for item in sorted(info.siblings or [], key=lambda item: item.rfilename)
    )
    card = info.card_data.to_dict() if info.card_data is not None else {}
    return RemoteRepo(
        repo=repo,
        commit=info.sha,
        requested_revision=revision,
        floating=revision is None or not COMMIT.fullmatch(revision),
        gated=bool(info.gated),
        license=_license(card),
        license_name=text_value(card, "license_name"),
        files=files,
        last_modified=info.last_modified,
        source="hub",
    )


def _license(card: dict[str, Any]) -> str | None:
    # A card may carry a list of licences; the first one stands for it, as on the Hub's pages.
    value = card.get("license")
    first = value[0] if isinstance(value, list) and value else value
    return text_value({"license": first}, "license")


def _cached_repo(repo: str, revision: str | None) -> RemoteRepo | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(found, str):
        return None
    snapshot = Path(found).parent
    if not COMMIT.fullmatch(snapshot.name):
        return None
    card = _cached_card(snapshot)
    return RemoteRepo(
        repo=repo,
        commit=snapshot.name,
        requested_revision=revision,
        floating=revision is None or not COMMIT.fullmatch(revision),
        gated=any(key.startswith("extra_gated") for key in card),
        license=_license(card),
        license_name=text_value(card, "license_name"),
        files=_cached_files(snapshot),
        last_modified=None,
        source="cache",
    )


def _cached_card(snapshot: Path) -> dict[str, Any]:
    path = snapshot / "README.md"
    if not path.exists():
        return {}
    try:
        return parse_front_matter(read_text(path), where=str(path))
    except InputError:
        # A card that cannot be read says nothing; whoever needs the licence then asks for it.
        return {}


def _cached_files(snapshot: Path) -> tuple[RemoteFile, ...]:
    """Lists a snapshot with the digests that its links carry.

    Source: huggingface_hub 2.4, file_download.py: a snapshot's file links to `blobs/<etag>`, and
    the etag is the sha256 of a large file and the git blob id of a small one.
    """
    files = []
    for path in sorted(item for item in snapshot.rglob("*") if item.is_file()):
        digest = path.readlink().name if path.is_symlink() else ""
        files.append(
            RemoteFile(
                name=path.relative_to(snapshot).as_posix(),
                size=path.stat().st_size,
                sha256=digest if _SHA256.fullmatch(digest) else None,
                git_blob_id=digest if COMMIT.fullmatch(digest) else None,
            )
        )
    return tuple(files)
