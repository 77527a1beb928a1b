"""Which repository gets which target of a bundle. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from packager.errors import HubError
from packager.manifest import FileEntry, Manifest, TargetRecord
from packager.obligation import name_prefix

State = Literal["new", "changed", "unchanged"]
"""Against the repository's head: not there, there with other content, there as it is."""


@dataclass(frozen=True)
class RepoPlan:
    """One target and the repository that it goes to.

    Attributes:
        repo: `USER/NAME`.
        target: From the manifest.
        files: With paths relative to the target's folder, which are the paths in the repository.
    """

    repo: str
    target: TargetRecord
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class PublishedFile:
    """One file of a published repository, and how it stood there before."""

    path: str
    size: int
    sha256: str
    state: State


@dataclass(frozen=True)
class PublishedRepo:
    """What was published, or would be.

    Attributes:
        repo: `USER/NAME`.
        url: Its page.
        target: `adapter` or `merged`.
        name: The adapter's name in the release.
        commit: What to pin: 40 hexadecimal digits. None in a dry run.
        private: Whether it is (or would be) private.
        existed: Whether the repository was there before.
        files: Every file of the target, in path order.
        removed: Files of an earlier release that would be loaded along, and go.
    """

    repo: str
    url: str
    target: str
    name: str
    commit: str | None
    private: bool
    existed: bool
    files: tuple[PublishedFile, ...]
    removed: tuple[str, ...]

    @property
    def sent_bytes(self) -> int:
        """Size of the files that were not there yet, in bytes."""
        return sum(file.size for file in self.files if file.state != "unchanged")


def plan_repos(manifest: Manifest, repo: str) -> tuple[RepoPlan, ...]:
    """Returns one repository per Hub target, in the manifest's order.

    One target goes to `repo` itself. Of several, a merged model goes to `repo` and an adapter to
    `repo-adapter`; with several adapter names each name becomes part of the repository's name.

    Args:
        manifest: Of the bundle.
        repo: `USER/NAME`.

    Raises:
        HubError: Nothing in the bundle goes to the Hub, or nobody else could load it.
    """
    targets = [record for record in manifest.targets if record.target in ("adapter", "merged")]
    if not targets:
        raise HubError(
            "nothing in this bundle goes to the Hub",
            expected="an adapter or a merged target",
            found=", ".join(sorted({record.target for record in manifest.targets})) or "no target",
            hint="release again with --target adapter or --target merged",
        )
    if manifest.base.repo is None and any(record.target == "adapter" for record in targets):
        raise HubError(
            "nobody else can load this adapter's base",
            expected="a base on the Hub, at a commit",
            found="a base in a local folder",
            hint="release again with --base org/name@revision",
        )
    per_name = Counter(record.name for record in targets)
    return tuple(
        RepoPlan(
            repo=_repo_name(
                repo, record, several=len(per_name) > 1, both=per_name[record.name] > 1
            ),
            target=record,
            files=target_files(manifest, record),
        )
        for record in targets
    )


def target_files(manifest: Manifest, record: TargetRecord) -> tuple[FileEntry, ...]:
    """Returns the files of one target with paths relative to its folder, in path order."""
    prefix = f"{record.path}/"
    return tuple(
        FileEntry(entry.path.removeprefix(prefix), entry.size, entry.sha256)
        for entry in sorted(manifest.files, key=lambda entry: entry.path)
        if entry.path.startswith(prefix)
    )


def name_warnings(license_id: str, plans: Iterable[RepoPlan]) -> tuple[str, ...]:
    """Says which repositories are not named as the base's licence asks, one line each."""
    prefix = name_prefix(license_id)
    if prefix is None:
        return ()
    return tuple(
        f"warning: the licence {license_id} asks for a name that begins with {prefix!r}; "
        f"{plan.repo} does not"
        for plan in plans
        if not _letters(plan.repo.partition("/")[2]).startswith(_letters(prefix))
    )


def _letters(name: str) -> str:
    # A repository's name holds no blanks: "Llama 3" is Llama-3 there.
    return "".join(char for char in name.lower() if char.isalnum())


def _repo_name(repo: str, record: TargetRecord, *, several: bool, both: bool) -> str:
    name = f"{repo}-{record.name}" if several else repo
    return f"{name}-adapter" if both and record.target == "adapter" else name
