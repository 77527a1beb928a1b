"""Names, rights, visibility, and tokens that nobody may see."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packager import hub
from packager.errors import BaseError, HubError, LorapackError, OutputError
from packager.hub.client import ask, clean_text
from packager.manifest import parse_manifest
from packager.publish import plan_repos, publish_hub
from packager.publish.plan import name_warnings
from packager.publish.right import rights_problem
from tests.hub.bundle import write_bundle
from tests.loopback_hub import Client, LoopbackHub

StartClient = Callable[..., Client]
REPO = "alice/pirate"


def who(role: str, *, orgs: dict[str, str] | None = None, **fine: Any) -> dict[str, Any]:
    organisations = [{"name": name, "roleInOrg": role_} for name, role_ in (orgs or {}).items()]
    token = {"role": role, **({"fineGrained": fine} if fine else {})}
    return {"name": "alice", "orgs": organisations, "auth": {"accessToken": token}}


def scope(name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}


@pytest.mark.parametrize(
    ("answer", "repo", "exists", "problem"),
    [
        (who("write"), "alice/m", False, ""),
        (who("read"), "alice/m", True, "may only read"),
        (who("write"), "bob/m", False, "no member of bob"),
        (who("write", orgs={"acme": "write"}), "acme/m", False, ""),
        (who("write", orgs={"acme": "contributor"}), "acme/m", False, ""),
        (who("write", orgs={"acme": "read"}), "acme/m", False, "may only read in acme"),
        (who("fineGrained", scoped=[scope("alice", "repo.write")]), "alice/m", False, ""),
        (who("fineGrained", scoped=[scope("alice", "repo.content.read")]), "alice/m", True, "fine"),
        (who("fineGrained", scoped=[scope("acme", "repo.write")]), "alice/m", False, "fine"),
        (who("fineGrained", scoped=[scope("alice/m", "repo.write")]), "alice/m", True, ""),
        # Rights on one repository do not make it.
        (who("fineGrained", scoped=[scope("alice/m", "repo.write")]), "alice/m", False, "fine"),
        ({"name": "alice", "auth": {"type": "oauth"}}, "alice/m", False, ""),
    ],
)
def test_rights(answer: dict[str, Any], repo: str, exists: bool, problem: str) -> None:
    found = rights_problem(answer, repo, exists=exists)
    assert problem in found
    assert bool(found) == bool(problem)


def test_a_token_without_the_right_to_write_sends_nothing(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    loopback_hub.add_token("hf_alicecanonlyread", "alice", "read")
    loopback_hub.add_token("hf_bobcanwritehisown", "bob")
    expected = {
        "hf_alicecanonlyread": "may not write there",
        "hf_bobcanwritehisown": "may not write there",
        "hf_nobodyknowsthisone": "does not know this token",
        None: "there is no token",
    }
    for token, text in expected.items():
        with pytest.raises(HubError, match=text) as caught:
            client(token=token).call(publish_hub, bundle, REPO)
        assert "hf auth login" in caught.value.hint
    assert {request.method for request in loopback_hub.requests} == {"GET"}


def test_organisations_and_fine_grained_tokens(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    loopback_hub.add_organisation("acme", alice="write", eve="read")
    loopback_hub.add_token("hf_alicewritesforacme", "alice")
    loopback_hub.add_token("hf_evereadsforacme000", "eve")
    fine = loopback_hub.add_token(
        "hf_finegrainedforacme", "alice", "fineGrained", {"acme": ("repo.write",)}
    )
    (made,) = client(token="hf_alicewritesforacme").call(publish_hub, bundle, "acme/m")
    assert made.repo in loopback_hub.store.repos
    (again,) = client(token=fine).call(publish_hub, bundle, "acme/n")
    assert again.repo in loopback_hub.store.repos
    with pytest.raises(HubError, match="may not write"):
        client(token="hf_evereadsforacme000").call(publish_hub, bundle, "acme/o")
    with pytest.raises(HubError, match="may not write"):
        client(token=fine).call(publish_hub, bundle, REPO)
    assert set(loopback_hub.store.repos) == {"acme/m", "acme/n"}


@pytest.fixture
def alice(loopback_hub: LoopbackHub, client: StartClient) -> Client:
    return client(token=loopback_hub.add_token("hf_alicesownwritetoken", "alice"))


def test_a_gated_base_makes_private_repositories(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    gated = write_bundle(tmp_path / "gated", gated=True)
    (plan,) = alice.call(publish_hub, gated, REPO, dry_run=True)
    assert plan.private is True
    (made,) = alice.call(publish_hub, gated, REPO)
    assert made.private is loopback_hub.repo(REPO).private is True
    # It may be published openly if that is said.
    (made,) = alice.call(publish_hub, gated, "alice/open", private=False)
    assert made.private is loopback_hub.repo("alice/open").private is False


def test_a_base_that_the_hub_gates_today_counts_though_the_manifest_does_not_know(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}", encoding="utf-8")
    loopback_hub.seed("org/base", base, gated=True)
    (made,) = alice.call(publish_hub, bundle, REPO)
    assert made.private is loopback_hub.repo(REPO).private is True


def test_visibility_is_never_changed(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    gated = write_bundle(tmp_path / "gated", gated=True)
    loopback_hub.store.create_repo("alice/public", private=False)
    loopback_hub.store.create_repo("alice/private", private=True)
    cases = [
        (bundle, "alice/public", True, "public"),
        (gated, "alice/public", None, "gated"),
        (bundle, "alice/private", False, "private"),
    ]
    for folder, repo, private, text in cases:
        with pytest.raises(HubError, match=text) as caught:
            alice.call(publish_hub, folder, repo, private=private)
        assert f"{loopback_hub.endpoint}/{repo}/settings" in caught.value.hint
        assert len(loopback_hub.repo(repo).commits) == 1
    (made,) = alice.call(publish_hub, bundle, "alice/private")
    assert made.private is loopback_hub.repo("alice/private").private is True
    (made,) = alice.call(publish_hub, gated, "alice/public", private=False)
    assert made.private is loopback_hub.repo("alice/public").private is False
    assert loopback_hub.asked("settings") == []


def plan(targets: Any, base: str | None, folder: Path, repo: str = "alice/m") -> list[str]:
    bundle = write_bundle(folder, targets, base=base)
    manifest = parse_manifest((bundle / "lorapack.json").read_bytes(), where="test")
    return [item.repo for item in plan_repos(manifest, repo)]


def test_repository_names(tmp_path: Path) -> None:
    one = plan([("adapter", "pirate")], "org/base", tmp_path / "1")
    assert one == ["alice/m"]
    both = plan([("merged", "pirate"), ("adapter", "pirate")], "org/base", tmp_path / "2")
    assert both == ["alice/m", "alice/m-adapter"]
    two = plan([("adapter", "pirate"), ("adapter", "poet")], "org/base", tmp_path / "3")
    assert two == ["alice/m-pirate", "alice/m-poet"]


def test_what_cannot_be_published(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="nothing in this bundle") as caught:
        plan([("ollama", "pirate")], "org/base", tmp_path / "1")
    assert "--target" in caught.value.hint
    with pytest.raises(HubError, match="nobody else can load") as caught:
        plan([("adapter", "pirate")], None, tmp_path / "2")
    assert caught.value.hint == "release again with --base org/name@revision"
    assert plan([("merged", "pirate")], None, tmp_path / "3") == ["alice/m"]


def test_a_name_that_the_licence_does_not_allow_is_said(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    manifest = parse_manifest((bundle / "lorapack.json").read_bytes(), where="test")
    warnings = {
        name: name_warnings("llama3", plan_repos(manifest, f"alice/{name}"))
        for name in ("Llama-3-pirate", "pirate")
    }
    assert warnings["Llama-3-pirate"] == ()
    (line,) = warnings["pirate"]
    assert "begins with 'Llama 3'; alice/pirate does not" in line
    assert name_warnings("apache-2.0", plan_repos(manifest, "alice/pirate")) == ()


@pytest.mark.parametrize(
    "repo", ["pirate", "alice/a/b", "alice/海盗", "alice/-x", "alice/a--b", ""]
)
def test_names_that_cannot_be(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path, repo: str
) -> None:
    with pytest.raises(HubError, match="cannot be the name") as caught:
        alice.call(publish_hub, write_bundle(tmp_path / "bundle"), repo)
    assert repr(repo) in caught.value.found
    assert loopback_hub.requests == []


def test_an_adapter_name_that_cannot_be_in_a_repository(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", (("adapter", "海盗"), ("adapter", "poet")))
    with pytest.raises(HubError, match="cannot be the name") as caught:
        alice.call(publish_hub, bundle, REPO)
    assert "alice/pirate-海盗" in caught.value.found
    assert loopback_hub.requests == []


SECRET = "hf_SecretThatNobodyMaySee42"
OTHER_SECRET = "opaque.of-some/company=77"
PASSWORD = "correct-horse-battery"


def everything_said(problem: BaseException, process: Client) -> str:
    """The error as text, as fields, as a traceback with its whole chain, and what was printed."""
    assert isinstance(problem, LorapackError)
    fields = json.dumps(problem.to_json())
    chain = "".join(traceback.format_exception(problem))
    notes = "\n".join(getattr(problem, "__notes__", []))
    return "\n".join((str(problem), repr(problem), fields, chain, notes, process.printed()))


@pytest.mark.parametrize("secret", [SECRET, OTHER_SECRET])
def test_a_token_is_in_no_error_and_no_output(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path, secret: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    process = client(token=secret, environment={"HF_DEBUG": "1"})
    told = f"no: {secret} is bad"
    said = []
    for route in ("model_info", "whoami", "validate_yaml", "create_repo", "lfs_batch", "commit"):
        loopback_hub.reset()
        loopback_hub.add_token(secret, "alice")
        loopback_hub.fail(route, times=99, status=403, message=told)
        with pytest.raises(LorapackError) as caught:
            process.call(publish_hub, bundle, REPO)
        said.append(everything_said(caught.value, process))
        assert "<token>" in said[-1] or "<hidden>" in said[-1]
    loopback_hub.reset()
    loopback_hub.fail("model_info", times=99, status=500, message=told)
    with pytest.raises(BaseError) as caught_base:
        process.call(hub.resolve_repo, "org/base")
    said.append(everything_said(caught_base.value, process))
    loopback_hub.reset()
    with pytest.raises(HubError) as caught:  # The Hub does not know it any more.
        process.call(publish_hub, bundle, REPO)
    said.append(everything_said(caught.value, process))
    assert secret not in "\n".join(said)
    written = [path for path in process.home.rglob("*") if path.is_file()]
    assert written
    assert not any(secret.encode() in path.read_bytes() for path in written)


def test_credentials_in_the_hubs_address_are_refused_and_not_shown(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    address = loopback_hub.endpoint.replace("http://", f"http://alice:{PASSWORD}@")
    process = client(token=SECRET, environment={"HF_ENDPOINT": address})
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(HubError, match="holds credentials") as caught:
        process.call(publish_hub, bundle, REPO)
    assert "HF_TOKEN" in caught.value.hint
    said = everything_said(caught.value, process)
    with pytest.raises(HubError, match="holds credentials") as caught:
        process.call(hub.resolve_repo, "org/base")
    said += everything_said(caught.value, process)
    assert PASSWORD not in said
    assert SECRET not in said
    assert loopback_hub.requests == []


def test_credentials_in_a_repositorys_name_are_not_shown(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    process = client(token=SECRET)
    for name in (f"https://alice:{PASSWORD}@hub/alice/m", f"alice/{SECRET}/m"):
        with pytest.raises(HubError) as caught:
            process.call(hub.resolve_repo, name)
        said = everything_said(caught.value, process)
        assert PASSWORD not in said
        assert SECRET not in said.replace(repr(name), "")


def test_a_full_disk_is_said_and_not_tried_again() -> None:
    calls = []

    def fill() -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blobs/x")

    with pytest.raises(OutputError, match="disk is full") as caught:
        ask(fill)
    assert (len(calls), caught.value.where) == (1, "/cache/blobs/x")


def test_signed_addresses_lose_their_signature() -> None:
    address = "https://s3/x?X-Amz-Signature=abcdef&X-Amz-Date=1 and https://u:p@h/y"
    cleaned = clean_text(address)
    assert "abcdef" not in cleaned
    assert "u:p" not in cleaned
    assert cleaned.startswith("https://s3/x?")
