"""`REF` → the exact base: a directory with a content digest, on the Hub also a commit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from packager.base.index import INDEX_NAME, weight_file_names
from packager.digest import (
    OnBytes,
    check_identity,
    content_digest,
    hash_files,
    identify_file,
)
from packager.errors import BaseError
from packager.filekind import is_identity_file, list_model_files
from packager.manifest import FileEntry
from packager.untrusted import check_folder_name, find_folder, resolve_inside

# Source: huggingface_hub 2.x, utils/_validators.py: a part begins with no dot and no dash.
_REPO = re.compile(
    r"(?P<repo>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>[^\s@]{1,255}))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")

Say = Callable[[str], None]
"""Called with one line that a user should see."""


@dataclass(frozen=True)
class BaseRef:
    """One exact version of a base on this machine.

    Attributes:
        repo: `org/name` on the Hub, or None for a directory of unknown origin.
        commit: 40 hexadecimal digits, or None likewise.
        directory: Where its files lie.
        gated: Whether the Hub asks for an agreement before download.
        license: What the Hub says its licence is, or None.
        names: Of weights, index, configuration and tokenizer files, in path order.
        identities: Of the same files, as `identify_file` gave them when they were found.
        on_bytes: Progress of hashing.
        announced: The files as the Hub announces them, where their weights were not fetched.
        remembers: Whether digests may be kept for the next run.
    """

    repo: str | None
    commit: str | None
    directory: Path
    gated: bool
    license: str | None
    names: tuple[str, ...]
    identities: tuple[str, ...] = field(compare=False, repr=False)
    on_bytes: OnBytes | None = field(default=None, compare=False, repr=False)
    announced: tuple[FileEntry, ...] = field(default=(), compare=False, repr=False)
    remembers: bool = field(default=True, compare=False, repr=False)

    @cached_property
    def files(self) -> tuple[FileEntry, ...]:
        """The files called `names`, hashed when they are first asked for.

        Raises:
            InputError: A file cannot be read.
        """
        if self.announced:
            return tuple(entry for entry in self.announced if entry.path in self.names)
        return hash_files(self.directory, self.names, self.on_bytes, remember=self.remembers)

    @property
    def is_hashed(self) -> bool:
        """Whether `digest` is known without reading the weights."""
        return bool(self.announced) or "files" in self.__dict__

    def check_unchanged(self) -> None:
        """Refuses a base that was written to since it was found.

        Raises:
            InputError: A file was changed, replaced or removed.
        """
        for name, identity in zip(self.names, self.identities, strict=True):
            check_identity(self.directory / name, identity)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over `files`."""
        return content_digest(self.files)

    @property
    def title(self) -> str:
        """What to call it: `org/name@commit`, or the folder's name."""
        if self.repo is not None:
            return f"{self.repo}@{self.commit}" if self.commit else self.repo
        return self.directory.resolve().name


def resolve_base(
    ref: str, *, say: Say, on_bytes: OnBytes | None = None, hollow: Path | None = None
) -> BaseRef:
    """Finds the exact base that `ref` names, downloading it when it is on the Hub.

    Args:
        ref: A directory, or `org/name[@revision]`.
        say: Told what a floating revision was resolved to.
        on_bytes: Progress of hashing.
        hollow: For a dry run, an empty folder: a base on the Hub is laid out in it with the
            headers of its weights only, and nothing else is written anywhere.

    Raises:
        BaseError: Not found, gated, offline, or not a checkpoint.
        BaseMismatchError: A downloaded file is not what the Hub says it is.
    """
    path = find_folder(ref)
    if path is not None:
        found = read_local_base(path, on_bytes=on_bytes)
        return replace(found, remembers=hollow is None)
    match = _REPO.fullmatch(ref)
    if match is None or ref.startswith(("/", "./", "../", "~")):
        raise BaseError(
            "there is no such base",
            where=ref[:200],
            expected="a folder, or org/name[@revision] on the Hub",
            hint="give the base with --base",
        )
    return _fetch_hub_base(
        match["repo"], match["revision"], say=say, on_bytes=on_bytes, hollow=hollow
    )


def is_pin(repo: str, commit: str | None) -> bool:
    """Tells whether a repository and a commit have the form that the Hub gives them."""
    match = _REPO.fullmatch(repo)
    named = match is not None and match["revision"] is None
    return named and (commit is None or _COMMIT.fullmatch(commit) is not None)


def read_local_base(directory: Path, *, on_bytes: OnBytes | None = None) -> BaseRef:
    """Identifies a base that lies in a directory, by the content of its files.

    A snapshot folder of the Hub's cache also tells its repository and commit.

    Raises:
        BaseError: The folder is not a checkpoint.
        UnsafeInputError: The weights are pickles, or a file is a link that leads outside.
    """
    check_folder_name(directory)
    names = list_model_files(directory)
    weights = weight_file_names(directory)
    identity = [name for name in names if is_identity_file(name)]
    index = [INDEX_NAME] if INDEX_NAME in names else []
    chosen = tuple(sorted({*weights, *identity, *index}))
    paths = [resolve_inside(directory, name, where=str(directory)) for name in chosen]
    repo, commit = _snapshot_origin(directory)
    return BaseRef(
        repo=repo,
        commit=commit,
        directory=directory.absolute(),
        gated=False,
        license=None,
        names=chosen,
        identities=tuple(map(identify_file, paths)),
        on_bytes=on_bytes,
    )


def _snapshot_origin(directory: Path) -> tuple[str | None, str | None]:
    """Reads repository and commit from the path of a Hub cache snapshot.

    Source: huggingface_hub 1.x, file_download.py, repo_folder_name and _get_pointer_path:
    `models--org--name/snapshots/<commit>`.
    """
    place = directory.resolve()
    owner = place.parent.parent.name.split("--")
    known = (
        place.parent.name == "snapshots"
        and _COMMIT.fullmatch(place.name)
        and len(owner) == 3
        and owner[0] == "models"
    )
    return ("/".join(owner[1:]), place.name) if known else (None, None)


def _fetch_hub_base(
    repo: str, revision: str | None, *, say: Say, on_bytes: OnBytes | None, hollow: Path | None
) -> BaseRef:
    from packager import hub  # the Hub's client is only loaded when the base is there

    remote = hub.resolve_repo(repo, revision)
    if remote.floating:
        say(f"base {repo}@{remote.requested_revision or 'main'} is commit {remote.commit}")
    names = hub.wanted_base_files(remote)
    if hollow is None:
        local = read_local_base(hub.fetch_files(remote, names, on_bytes), on_bytes=on_bytes)
    else:
        folder = hollow / f"{remote.repo.replace('/', '--')}@{remote.commit}"
        announced = hub.fetch_hollow(remote, names, folder)
        local = replace(read_local_base(folder), announced=announced, remembers=False)
    return replace(
        local, repo=remote.repo, commit=remote.commit, gated=remote.gated, license=remote.license
    )
