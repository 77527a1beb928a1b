"""What the loopback Hub keeps: objects by content, repositories with history, accounts."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import yaml

Role = Literal["read", "write", "fineGrained"]

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.model", "*.gguf", "*.npz", "*.msgpack")
"""Names that a new model repository keeps as large files, whatever their size.

Source: the `.gitattributes` that huggingface.co puts into every new model repository.
"""

_KINDS = ("lfs", "git", "repos", "parts", "xet")

LFS_MIN_BYTES = 10_000_000
"""Larger files are large files whatever their name."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a commit; `lfs` tells which of the two object stores holds its bytes."""

    size: int
    sha256: str
    blob_id: str
    lfs: bool


@dataclass(frozen=True)
class StoredCommit:
    oid: str
    parent: str | None
    date: str
    title: str
    message: str
    author: str
    files: dict[str, StoredFile]


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, StoredCommit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> StoredCommit | None:
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, oid: str) -> list[StoredCommit]:
        """The commit and its ancestors, newest first."""
        found = []
        current = self.commits.get(oid)
        while current is not None:
            found.append(current)
            current = self.commits.get(current.parent) if current.parent else None
        return found


@dataclass(frozen=True)
class Token:
    """A token: whose it is and what it may do (`scopes`: entity name → permissions)."""

    user: str
    role: Role
    scopes: dict[str, tuple[str, ...]] = field(default_factory=dict)


class Store:
    """Everything that the Hub keeps, on disk below `root`, so that a new server finds it again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, Token] = {}
        self.organisations: dict[str, dict[str, str]] = {}
        self._make_folders()
        for path in sorted((root / "repos").glob("*.json")):
            self._load(path)

    def clear(self) -> None:
        with self.lock:
            self.repos.clear()
            self.tokens.clear()
            self.organisations.clear()
            for kind in _KINDS:
                shutil.rmtree(self.root / kind)
            self._make_folders()

    def _make_folders(self) -> None:
        for kind in _KINDS:
            (self.root / kind).mkdir(parents=True, exist_ok=True)

    def create_repo(self, name: str, *, private: bool, gated: bool = False) -> Repo:
        """Makes a repository with the first commit that huggingface.co makes, too."""
        with self.lock:
            repo = self.repos[name] = Repo(name, private=private, gated=gated)
            lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text" for pattern in LFS_PATTERNS]
            attributes = self.put_small(("\n".join(lines) + "\n").encode())
            self.add_commit(
                repo, {".gitattributes": attributes}, title="initial commit", author="system"
            )
            return repo

    def put_small(self, data: bytes) -> StoredFile:
        blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (self.root / "git" / blob_id).write_bytes(data)
        return StoredFile(len(data), hashlib.sha256(data).hexdigest(), blob_id, lfs=False)

    def put_large(self, data: bytes) -> StoredFile:
        sha256 = hashlib.sha256(data).hexdigest()
        (self.root / "lfs" / sha256).write_bytes(data)
        return self.large_file(sha256, len(data))

    def large_file(self, sha256: str, size: int) -> StoredFile:
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        ).encode()
        blob_id = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return StoredFile(size, sha256, blob_id, lfs=True)

    def object_path(self, file: StoredFile) -> Path:
        return (
            self.root / ("lfs" if file.lfs else "git") / (file.sha256 if file.lfs else file.blob_id)
        )

    def has_large(self, sha256: str) -> bool:
        return (self.root / "lfs" / sha256).is_file()

    def is_large(self, path: str, size: int) -> bool:
        name = path.rsplit("/", 1)[-1]
        return size > LFS_MIN_BYTES or any(fnmatch(name, pattern) for pattern in LFS_PATTERNS)

    def add_commit(
        self,
        repo: Repo,
        files: dict[str, StoredFile],
        *,
        title: str,
        author: str,
        message: str = "",
        date: datetime | None = None,
        branch: str = "main",
    ) -> StoredCommit:
        """Puts a commit with exactly `files` on top of `branch`."""
        with self.lock:
            parent = repo.refs.get(branch)
            moment = date or self._now_after(repo, parent)
            text = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
            tree = sorted((path, file.blob_id) for path, file in files.items())
            seed = json.dumps([parent, text, title, message, author, tree, repo.name])
            oid = hashlib.sha1(seed.encode()).hexdigest()
            commit = StoredCommit(oid, parent, text, title, message, author, dict(files))
            repo.commits[oid] = commit
            repo.refs[branch] = oid
            self._save(repo)
            return commit

    def commit_folder(
        self, repo: Repo, folder: Path, *, title: str, date: datetime | None, author: str
    ) -> StoredCommit:
        """Commits exactly the files of a folder, as if they had been pushed."""
        files: dict[str, StoredFile] = {}
        head = repo.commit("main")
        if head is not None and ".gitattributes" in head.files:
            files[".gitattributes"] = head.files[".gitattributes"]
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            name = path.relative_to(folder).as_posix()
            data = path.read_bytes()
            large = self.is_large(name, len(data))
            files[name] = self.put_large(data) if large else self.put_small(data)
        return self.add_commit(repo, files, title=title, author=author, date=date)

    def card_data(self, commit: StoredCommit) -> dict[str, object]:
        """The YAML block of a commit's README.md, as the Hub's API returns it."""
        card = commit.files.get("README.md")
        if card is None:
            return {}
        parts = self.object_path(card).read_text(encoding="utf-8").split("---\n", 2)
        data = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
        return data if isinstance(data, dict) else {}

    def _now_after(self, repo: Repo, parent: str | None) -> datetime:
        now = datetime.now(UTC)
        if parent is None:
            return now
        before = datetime.fromisoformat(repo.commits[parent].date)
        return max(now, before + timedelta(milliseconds=1))

    def _save(self, repo: Repo) -> None:
        value = {**asdict(repo), "granted": sorted(repo.granted)}
        path = self.root / "repos" / (repo.name.replace("/", "--") + ".json")
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    def _load(self, path: Path) -> None:
        raw = json.loads(path.read_text(encoding="utf-8"))
        commits = {
            oid: StoredCommit(
                **{
                    **commit,
                    "files": {name: StoredFile(**file) for name, file in commit["files"].items()},
                }
            )
            for oid, commit in raw["commits"].items()
        }
        self.repos[raw["name"]] = Repo(
            **{**raw, "granted": set(raw["granted"]), "commits": commits}
        )
