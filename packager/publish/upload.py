"""Sending one repository, so that at no time half a release can be loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import BundleError, HubError
from packager.hub.client import ATTEMPTS, HubRefusedError, ask, client, endpoint
from packager.manifest import FileEntry
from packager.progress import Progress
from packager.publish.plan import PublishedFile, RepoPlan
from packager.publish.state import RepoState, is_entry, is_same, read_state

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

_WEIGHTS = ".safetensors"
_PAUSE_SECONDS = 1.0


def upload(
    folder: Path,
    plan: RepoPlan,
    state: RepoState,
    files: tuple[PublishedFile, ...],
    stale: tuple[str, ...],
    progress: Progress,
) -> str:
    """Brings a repository to exactly the target's content and returns the commit.

    The bytes of large files go first and become visible with no commit. A repository that nothing
    can be loaded from yet gets the weights in a commit of their own, so that the Hub keeps them
    if the run ends there; configuration, index, tokenizer and card follow in the last one. In a
    repository that can be loaded already everything changes in one commit, since its old
    configuration or index would point to new weights in between. Each commit names its parent
    and is refused when somebody else was faster. A second run finds finished files there.

    Raises:
        HubRefusedError: The Hub refuses, breaks off, or has got another commit.
        BundleError: A file changed while it was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    assert state.head is not None
    pending = [file for file in files if file.state != "unchanged"]
    if not pending and not stale:
        return state.head
    adds = {
        file.path: CommitOperationAdd(file.path, str((folder / file.path).absolute()))
        for file in pending
    }
    weights = [file for file in pending if file.path.endswith(_WEIGHTS)]
    progress.stage(f"sending {plan.repo}", sum(file.size for file in pending))
    for file in weights:
        _send_large(plan.repo, file, adds[file.path])
        progress.advance(file.size)
    parent = state.head
    expected = {entry.path: entry for entry in plan.files}
    if weights and not any(is_entry(name) for name in state.files):
        operations = [adds.pop(file.path) for file in weights]
        wanted = {file.path: expected[file.path] for file in weights}
        title = "Add weights (lorapack)"
        parent = _commit(plan.repo, operations, title, parent, _holds(folder, wanted, ()))
    deletions = [CommitOperationDelete(name) for name in stale]
    if adds or deletions:
        title = f"Publish {plan.target.target} model (lorapack)"
        done = _holds(folder, expected, stale)
        parent = _commit(plan.repo, [*adds.values(), *deletions], title, parent, done)
    progress.advance(sum(file.size for file in pending if file not in weights))
    return parent


def _send_large(repo: str, file: PublishedFile, add: CommitOperationAdd) -> None:
    # The client itself tries every request of an upload six times.
    ask(
        lambda: client().preupload_lfs_files(repo, [add], free_memory=False),
        attempts=1,
    )
    if add.upload_info.sha256.hex() != file.sha256:
        raise BundleError(
            "a file changed while it was sent",
            where=file.path,
            expected=f"sha256 {file.sha256}",
            found=f"sha256 {add.upload_info.sha256.hex()}",
            hint="release the bundle again",
        )


def _commit(
    repo: str,
    operations: Sequence[CommitOperationAdd | CommitOperationDelete],
    title: str,
    parent: str,
    done: Callable[[RepoState], bool],
) -> str:
    """Makes a commit on `parent` and nothing else, also when the Hub's answer gets lost.

    The client does not repeat a commit by itself, and the Hub may have made one that it answered
    with an error (huggingface/datasets#7708). So the head is looked at before every new attempt.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            made = ask(
                lambda: client().create_commit(
                    repo,
                    operations,
                    commit_message=title,
                    parent_commit=parent,
                ),
                attempts=1,
            )
        except HubRefusedError as refusal:
            problem = refusal
        else:
            return made.oid
        state = read_state(repo)
        if state.head is not None and state.head != parent:
            if done(state):
                return state.head
            raise _somebody_else(repo, parent, state.head)
        if problem.refused not in ("busy", "broken") or attempt == ATTEMPTS:
            raise problem
        time.sleep(_PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")


def _somebody_else(repo: str, parent: str, head: str) -> HubError:
    return HubError(
        "the repository got another commit in the meantime; nothing of the last step was published",
        where=f"{endpoint()}/{repo}",
        expected=f"commit {parent}",
        found=f"commit {head}",
        hint=f"look at {endpoint()}/{repo}/commits, then run again: finished files are not sent "
        "again",
    )


def _holds(
    folder: Path, wanted: Mapping[str, FileEntry], gone: tuple[str, ...]
) -> Callable[[RepoState], bool]:
    def check(state: RepoState) -> bool:
        return not any(name in state.files for name in gone) and all(
            name in state.files and is_same(folder / name, entry, state.files[name])
            for name, entry in wanted.items()
        )

    return check
