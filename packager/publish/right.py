"""Whether a token may write where a release is to go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packager.errors import HubError
from packager.hub.client import ask, client, endpoint

_WRITING_ROLES = ("admin", "write", "contributor")


def check_rights(repos: Iterable[tuple[str, bool]]) -> None:
    """Asks the Hub whose token this is, and refuses one that cannot write.

    Args:
        repos: Each repository with whether it exists already.

    Raises:
        HubError: There is no token, the Hub does not know it, or its rights are too small.
    """
    who = ask(lambda: client().whoami())
    for repo, exists in repos:
        if problem := rights_problem(who, repo, exists=exists):
            raise HubError(
                "the token may not write there",
                where=f"{endpoint()}/{repo}",
                expected="a token with the right to write",
                found=problem,
                hint=f"make one at {endpoint()}/settings/tokens, then: hf auth login",
            )


def rights_problem(who: dict[str, Any], repo: str, *, exists: bool) -> str:
    """Says why a token cannot write to a repository; empty if it can, as far as that is known.

    Source: the answer of /api/whoami-v2; huggingface.js, packages/hub, api-who-am-i.ts
    (AccessTokenRole); huggingface.co/docs/hub/security-tokens and organizations-security. Of kinds
    of tokens that are not described there nothing is said: the Hub then decides itself.
    """
    namespace = repo.partition("/")[0]
    user = who.get("name")
    token = (who.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "fineGrained":
        return _scope_problem(token.get("fineGrained") or {}, namespace, repo, exists=exists)
    if role == "read":
        return f"a token of {user} that may only read"
    if namespace == user:
        return ""
    roles = {item.get("name"): item.get("roleInOrg") for item in who.get("orgs") or []}
    if namespace not in roles:
        return f"a token of {user}, who is no member of {namespace}"
    if roles[namespace] is not None and roles[namespace] not in _WRITING_ROLES:
        return f"a token of {user}, who may only {roles[namespace]} in {namespace}"
    return ""


def _scope_problem(fine: dict[str, Any], namespace: str, repo: str, *, exists: bool) -> str:
    for scope in fine.get("scoped") or []:
        entity = scope.get("entity") or {}
        covers = entity.get("name") == namespace or (exists and entity.get("name") == repo)
        if covers and "repo.write" in (scope.get("permissions") or []):
            return ""
    return f"a fine-grained token without write access to {repo if exists else namespace}"
