"""Who may do what on the loopback Hub; refusals look as on huggingface.co."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.loopback_hub.wire import Call, HttpError

if TYPE_CHECKING:
    from tests.loopback_hub.server import LoopbackHub
    from tests.loopback_hub.store import Repo, Token


def caller(hub: LoopbackHub, call: Call, *, needed: bool = False) -> Token | None:
    """Whose token the request carries; a wrong one is refused, as is none where one is needed."""
    if call.token is None:
        if needed:
            raise HttpError(401, "Invalid username or password.")
        return None
    token = hub.store.tokens.get(call.token)
    if token is None:
        raise HttpError(401, "Invalid credentials in Authorization header")
    return token


def may_write(hub: LoopbackHub, token: Token, repo: str) -> bool:
    namespace = repo.partition("/")[0]
    member = hub.store.organisations.get(namespace, {}).get(token.user)
    if token.role == "fineGrained":
        scopes = (*token.scopes.get(namespace, ()), *token.scopes.get(repo, ()))
        return "repo.write" in scopes
    is_owner = namespace == token.user or member in ("write", "admin", "contributor")
    return token.role == "write" and is_owner


def belongs(hub: LoopbackHub, token: Token | None, repo: str) -> bool:
    namespace = repo.partition("/")[0]
    if token is None:
        return False
    return token.user == namespace or token.user in hub.store.organisations.get(namespace, {})


def find_repo(hub: LoopbackHub, call: Call, *, write: bool = False) -> Repo:
    """The repository of a request, if its caller may see it (or write to it)."""
    name = call.params["repo"]
    token = caller(hub, call, needed=write)
    repo = hub.store.repos.get(name)
    if repo is None or (repo.private and not belongs(hub, token, name)):
        if token is None:
            raise HttpError(401, "Invalid username or password.", "RepoNotFound")
        raise HttpError(404, "Repository not found", "RepoNotFound")
    if write:
        assert token is not None
        if not may_write(hub, token, name):
            raise HttpError(403, f'You don\'t have the rights to write to "{name}"')
    return repo


def check_gate(hub: LoopbackHub, call: Call, repo: Repo) -> None:
    """Refuses the files of a gated repository to those who have not accepted its terms."""
    token = caller(hub, call)
    if not repo.gated or belongs(hub, token, repo.name):
        return
    if token is None:
        raise HttpError(
            401,
            f"Access to model {repo.name} is restricted. You must have access to it and be "
            "authenticated to access it. Please log in.",
            "GatedRepo",
        )
    if token.user not in repo.granted:
        raise HttpError(
            403,
            f"Access to model {repo.name} is restricted and you are not in the authorized list. "
            f"Visit {hub.endpoint}/{repo.name} to ask for access.",
            "GatedRepo",
        )
