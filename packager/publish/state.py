"""How a repository stands on the Hub before and after: head, files, visibility."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import HubError
from packager.filekind import is_identity_file
from packager.hub.client import HubRefusedError, ask, client, endpoint
from packager.hub.fetch import git_blob_id
from packager.hub.remote import RemoteFile
from packager.manifest import BaseRecord, FileEntry
from packager.publish.plan import PublishedFile, RepoPlan, State

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_ENTRIES = ("config.json", "adapter_config.json", "base.lock.json")


@dataclass(frozen=True)
class RepoState:
    """A repository's head; of one that is not there everything is empty."""

    exists: bool
    private: bool
    head: str | None
    files: Mapping[str, RemoteFile]


def read_state(repo: str) -> RepoState:
    """Asks for a repository's newest commit, with every file's digest.

    Raises:
        HubRefusedError: The Hub refuses or does not answer.
    """
    try:
        info = ask(lambda: client().model_info(repo, files_metadata=True))
    except HubRefusedError as refusal:
        if refusal.refused == "no-repo":
            return RepoState(exists=False, private=False, head=None, files={})
        raise
    files = {
        item.rfilename: RemoteFile(
            name=item.rfilename,
            size=int(item.size or 0),
            sha256=item.lfs.sha256 if item.lfs is not None else None,
            git_blob_id=item.blob_id,
        )
        for item in info.siblings or []
    }
    return RepoState(exists=True, private=bool(info.private), head=info.sha, files=files)


def is_same(local: Path, entry: FileEntry, remote: RemoteFile) -> bool:
    """Tells whether the Hub announces exactly the content of a local file."""
    if remote.size != entry.size:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == entry.sha256
    return remote.git_blob_id == git_blob_id(local)


def file_states(folder: Path, plan: RepoPlan, state: RepoState) -> tuple[PublishedFile, ...]:
    """Compares a target's files with a repository's head."""

    def compare(entry: FileEntry) -> State:
        remote = state.files.get(entry.path)
        if remote is None:
            return "new"
        return "unchanged" if is_same(folder / entry.path, entry, remote) else "changed"

    return tuple(
        PublishedFile(entry.path, entry.size, entry.sha256, compare(entry)) for entry in plan.files
    )


def stale_files(plan: RepoPlan, state: RepoState) -> tuple[str, ...]:
    """Names the files of an earlier release that a loader would read along with the new ones.

    transformers prefers `model.safetensors` to an index, loads an `adapter_config.json` beside a
    model, and reads every tokenizer file that it knows. Other files are nobody's business here.

    Source: transformers 5.x, modeling_utils.py (_get_resolved_checkpoint_files),
    utils/peft_utils.py (find_adapter_config_file).
    """
    own = {entry.path for entry in plan.files}
    return tuple(sorted(name for name in state.files if name not in own and is_loaded(name)))


def is_loaded(name: str) -> bool:
    """Tells whether from_pretrained may read a file of this name."""
    folder, _, base = name.rpartition("/")
    if folder:
        return is_identity_file(name) and folder == "additional_chat_templates"
    return (
        is_identity_file(base)
        or base in _ENTRIES
        or base.endswith((*WEIGHT_SUFFIXES, ".index.json", ".py"))
    )


def is_entry(name: str) -> bool:
    """Tells whether a loader starts from this file: without it, weights are only weights."""
    return name in ("config.json", "adapter_config.json") or name.endswith(".index.json")


def choose_private(
    plan: RepoPlan, state: RepoState, *, private: bool | None, gated: bool
) -> bool | None:
    """Decides the visibility of a repository; that of an existing one is never changed.

    Args:
        plan: The repository.
        state: How it stands.
        private: What the user asked for, or None.
        gated: Whether the base is gated.

    Returns:
        True or False, or None for the account's own default.

    Raises:
        HubError: The repository exists and is not as asked for, or is public while the base is
            gated and the user has not said that this is meant.
    """
    wanted = True if private is None and gated else private
    if not state.exists or wanted is None or wanted == state.private:
        return state.private if state.exists else wanted
    place = f"{endpoint()}/{plan.repo}"
    reason = " and the base is gated" if private is None else ""
    raise HubError(
        f"the repository is {_word(state.private)}{reason}",
        where=place,
        expected=f"a {_word(wanted)} repository",
        found=f"a {_word(state.private)} one",
        hint=f"change it yourself at {place}/settings, or publish under another name",
    )


def _word(private: bool) -> str:
    return "private" if private else "public"


def is_base_gated(base: BaseRecord) -> bool:
    """Tells whether the base is gated: by the manifest, or by the Hub today.

    A bundle that was made offline cannot know.
    """
    repo = base.repo
    if base.gated or repo is None:
        return base.gated
    try:
        return bool(ask(lambda: client().model_info(repo)).gated)
    except HubRefusedError as refusal:
        if refusal.refused == "no-repo":
            return False
        if refusal.refused in ("gated", "forbidden"):
            return True
        raise
