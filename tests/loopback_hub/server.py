"""The loopback Hub: two servers, the Hub's own and its storage, and what a test can do to it."""

from __future__ import annotations

import sys
import threading
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.loopback_hub.fault import Fault, Faults, Request
from tests.loopback_hub.routes import ROUTES, STORAGE_ROUTES
from tests.loopback_hub.store import Repo, Role, Store, StoredCommit, Token
from tests.loopback_hub.wire import Server


class LoopbackHub:
    """A Hub on 127.0.0.1 that keeps what it gets below `root`.

    Use it as a context manager. The storage of large files answers on a port of its own, as
    huggingface.co's does on a host of its own: the client must not send it a token.

    Args:
        root: Where objects and repositories lie; a Hub started there again has them.
        multipart_bytes: Larger objects are asked for in parts of this size.
        xet: Whether it has Xet storage, as huggingface.co does; without it, large files go by LFS.
    """

    def __init__(
        self, root: Path, *, multipart_bytes: int | None = None, xet: bool = False
    ) -> None:
        self.store = Store(root)
        self.multipart_bytes = multipart_bytes
        self.xet = xet
        self.requests: list[Request] = []
        self.errors: list[str] = []
        self._faults = Faults()
        self._server = Server(self, ROUTES, self._faults)
        self._storage = Server(self, STORAGE_ROUTES, self._faults)
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            for server in (self._server, self._storage)
        ]

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT must be."""
        return self._server.url

    @property
    def storage_url(self) -> str:
        return self._storage.url

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in (self._server, self._storage):
            server.shutdown()
            server.server_close()

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """Variables for a client process: this Hub, a home of its own, and nobody's real token."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def add_token(
        self,
        token: str,
        user: str,
        role: Role = "write",
        scopes: dict[str, tuple[str, ...]] | None = None,
    ) -> str:
        """Makes a token known; `scopes` are those of a fine-grained one. Returns the token."""
        self.store.tokens[token] = Token(user, role, scopes or {})
        return token

    def add_organisation(self, name: str, **members: str) -> None:
        """Makes an organisation known with its members' roles (read, contributor, write, admin)."""
        self.store.organisations[name] = members

    def seed(
        self,
        name: str,
        folder: Path,
        *,
        title: str = "Add model",
        date: datetime | None = None,
        private: bool = False,
        gated: bool = False,
        author: str = "seed",
    ) -> StoredCommit:
        """Commits exactly the files of a folder to a repository, which is made if need be.

        With a date, the repository's first, empty commit is not newer than the seeded one.
        """
        repo = self.store.repos.get(name)
        if repo is None:
            repo = Repo(name, private=private, gated=gated)
            self.store.repos[name] = repo
        return self.store.commit_folder(repo, folder, title=title, date=date, author=author)

    def repo(self, name: str) -> Repo:
        return self.store.repos[name]

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds at a revision: path → bytes."""
        commit = self.repo(name).commit(revision)
        assert commit is not None
        return {
            path: self.store.object_path(file).read_bytes() for path, file in commit.files.items()
        }

    def fail(self, route: str, **fault: object) -> Fault:
        """Makes a route fail; see `Fault`."""
        return self._faults.add(Fault(route, **fault))  # type: ignore[arg-type]

    def heal(self) -> None:
        """Takes back every fault that has not happened yet."""
        self._faults.clear()

    def asked(self, route: str, *, method: str = "", containing: str = "") -> list[Request]:
        """The requests that a route got, in order."""
        return [
            request
            for request in self.requests
            if request.route == route
            and method in ("", request.method)
            and containing in request.path
        ]

    def reset(self) -> None:
        """Forgets everything, so that the next test finds an empty Hub at the same address."""
        self.heal()
        self.store.clear()
        self.multipart_bytes = None
        self.xet = False
        self.requests.clear()
        self.errors.clear()

    def forget(self) -> None:
        """Empties the log of requests."""
        self.requests.clear()

    def note(self, request: Request) -> None:
        self.requests.append(request)

    def note_error(self) -> None:
        problem = sys.exc_info()[1]
        if not isinstance(problem, ConnectionError):
            self.errors.append(repr(problem))
