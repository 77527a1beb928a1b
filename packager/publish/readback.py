"""Reading back what was published, by commit, and comparing it with the manifest."""

from __future__ import annotations

import tempfile
from pathlib import Path

from packager.digest import hash_file
from packager.errors import HubError
from packager.hub.client import ask, client, endpoint
from packager.publish.plan import RepoPlan
from packager.publish.state import is_loaded


def check_published(plan: RepoPlan, commit: str) -> None:
    """Compares every file of a commit with the manifest.

    Large files by the sha256 and size that the Hub gives; small ones are downloaded and hashed.

    Raises:
        HubError: A file is missing, differs, or is one too many; all are named.
    """
    from huggingface_hub.hf_api import RepoFile

    remote = {
        item.path: item
        for item in ask(
            lambda: list(client().list_repo_tree(plan.repo, revision=commit, recursive=True))
        )
        if isinstance(item, RepoFile)
    }
    problems = []
    with tempfile.TemporaryDirectory(prefix="lorapack-") as folder:
        for entry in plan.files:
            item = remote.get(entry.path)
            if item is None:
                problems.append(f"{entry.path} is missing")
                continue
            lfs = item.lfs
            found = lfs.sha256 if lfs else _download(plan.repo, entry.path, commit, Path(folder))
            if item.size != entry.size or found != entry.sha256:
                problems.append(f"{entry.path} has {item.size} bytes, sha256 {found}")
    own = {entry.path for entry in plan.files}
    problems += [
        f"{name} is not of this release" for name in remote if name not in own and is_loaded(name)
    ]
    if problems:
        raise HubError(
            "the Hub holds something else than was sent",
            where=f"{endpoint()}/{plan.repo}/tree/{commit}",
            expected="the files of the manifest",
            found="; ".join(sorted(problems)[:8]),
            hint="run the same command again; if it stays so, do not use that commit",
        )


def _download(repo: str, path: str, commit: str, folder: Path) -> str:
    """Downloads one small file past the cache and returns its sha256."""
    place = ask(lambda: client().hf_hub_download(repo, path, revision=commit, local_dir=folder))
    return hash_file(Path(place))
