"""What changed on the Hub after an adapter was made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from packager.hub.client import HubRefusedError, ask, client
from packager.hub.remote import base_error

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class WeightChange:
    """A commit that changed weight files.

    Attributes:
        commit: 40 hexadecimal digits.
        date: When, with a time zone.
        title: The first line of its message.
        files: Names of the weight files that it added, changed or removed, in name order.
    """

    commit: str
    date: datetime
    title: str
    files: tuple[str, ...]


def weight_changes_since(repo: str, since: datetime, commit: str) -> tuple[WeightChange, ...]:
    """Finds the commits after `since` that left other weights than there were then.

    A change that was taken back by a later one counts for nothing. Of several changes of a file
    the last one is named. Offline there is nobody to ask, and the answer is empty.

    Args:
        repo: `org/name`.
        since: When the adapter was made, with a time zone.
        commit: The commit of the base in use; its ancestors are looked at.

    Returns:
        The commits, newest first.

    Raises:
        BaseError: The Hub refuses.
    """
    try:
        return _changes(repo, since, commit)
    except HubRefusedError as refusal:
        if refusal.refused == "offline":
            return ()
        raise base_error(refusal, repo, commit) from None


def _changes(repo: str, since: datetime, commit: str) -> tuple[WeightChange, ...]:
    history = ask(lambda: client().list_repo_commits(repo, revision=commit))
    newer: list[Any] = []
    for item in history:
        if item.created_at <= since:
            break
        newer.append(item)
    if not newer:
        return ()
    trees = _Trees(repo)
    # Before the first commit of all there was nothing.
    line = [item.commit_id for item in history[: len(newer) + 1]]
    parents = [*line[1:], None] if len(line) == len(newer) else line[1:]
    open_files = _differing(trees.weights(line[0]), trees.weights(parents[-1]))
    changes = []
    for item, parent in zip(newer, parents, strict=True):
        if not open_files:
            break
        changed = open_files & _differing(trees.weights(item.commit_id), trees.weights(parent))
        if changed:
            changes.append(
                WeightChange(item.commit_id, item.created_at, item.title, tuple(sorted(changed)))
            )
        open_files -= changed
    return tuple(changes)


class _Trees:
    """The weight files of commits, asked for once: name → content's digest."""

    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._known: dict[str | None, dict[str, str]] = {None: {}}

    def weights(self, commit: str | None) -> dict[str, str]:
        if commit not in self._known:
            self._known[commit] = {
                item.path: item.blob_id
                for item in ask(
                    lambda: list(
                        client().list_repo_tree(self._repo, revision=commit, recursive=True)
                    )
                )
                if hasattr(item, "blob_id") and item.path.endswith(_WEIGHTS)
            }
        return self._known[commit]


def _differing(left: dict[str, str], right: dict[str, str]) -> set[str]:
    return {name for name in {*left, *right} if left.get(name) != right.get(name)}
