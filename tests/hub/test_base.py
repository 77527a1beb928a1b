"""Resolving and downloading a base with the real client from the loopback Hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from packager import hub
from packager.errors import BaseError, BaseMismatchError, UnsafeInputError
from packager.hub import RemoteFile, RemoteRepo
from tests.hub.conftest import write_base
from tests.loopback_hub import Client, LoopbackHub

StartClient = Callable[..., Client]
REPO = "org/base"
WANTED = (
    "LICENSE",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)


def test_a_floating_revision_is_resolved_to_a_commit(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    date = datetime(2026, 3, 1, 12, tzinfo=UTC)
    commit = loopback_hub.seed(REPO, base_folder, date=date)
    remote = client().call(hub.resolve_repo, REPO)
    assert (remote.repo, remote.commit) == (REPO, commit.oid)
    assert (remote.floating, remote.requested_revision) == (True, None)
    assert (remote.license, remote.gated, remote.source) == ("apache-2.0", False, "hub")
    assert remote.last_modified == date
    files = {file.name: file for file in remote.files}
    for name, stored in commit.files.items():
        assert files[name] == RemoteFile(
            name, stored.size, stored.sha256 if stored.lfs else None, stored.blob_id
        )
    assert files["model-00001-of-00002.safetensors"].sha256 is not None
    assert files["config.json"].sha256 is None


def test_a_commit_stays_what_it_was(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path, tmp_path: Path
) -> None:
    first = loopback_hub.seed(REPO, base_folder)
    second = loopback_hub.seed(REPO, write_base(tmp_path / "new", seed=1))
    process = client()
    pinned = process.call(hub.resolve_repo, REPO, first.oid)
    branch = process.call(hub.resolve_repo, REPO, "main")
    assert (pinned.commit, pinned.floating) == (first.oid, False)
    assert (branch.commit, branch.floating) == (second.oid, True)
    folder = process.call(hub.fetch_files, pinned, hub.wanted_base_files(pinned))
    assert folder.name == first.oid
    shard = "model-00001-of-00002.safetensors"
    assert (folder / shard).read_bytes() == (base_folder / shard).read_bytes()


def test_only_the_wanted_files_are_downloaded_and_only_once(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder)
    process = client()
    remote = process.call(hub.resolve_repo, REPO)
    assert hub.wanted_base_files(remote) == WANTED
    folder = process.call(hub.fetch_files, remote, WANTED)
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert tuple(sorted(found)) == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == (base_folder / name).read_bytes()
    loopback_hub.forget()
    assert process.call(hub.fetch_files, remote, WANTED) == folder
    assert loopback_hub.asked("object") == []
    assert loopback_hub.asked("resolve", method="GET") == []
    assert process.printed() == ""


def count_bytes(remote: RemoteRepo, names: tuple[str, ...]) -> int:
    """Runs in the client: downloads, and returns the bytes that progress was told."""
    counts: list[int] = []
    hub.fetch_files(remote, names, counts.append)
    return sum(counts)


def test_progress_counts_every_byte(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder)
    process = client()
    remote = process.call(hub.resolve_repo, REPO)
    total = sum((base_folder / name).stat().st_size for name in WANTED)
    assert process.call(count_bytes, remote, WANTED) == total


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("model_info", {"status": 429, "retry_after": 0}),
        ("model_info", {"status": 503}),
        ("model_info", {"cut_after": 10}),
        ("resolve", {"status": 500, "method": "GET", "containing": "config.json"}),
        ("object", {"status": 500}),
        ("object", {"cut_after": 70_000}),
        ("object", {"status": 429, "retry_after": 0}),
    ],
)
def test_a_short_failure_is_waited_out(
    loopback_hub: LoopbackHub,
    client: StartClient,
    base_folder: Path,
    route: str,
    fault: dict[str, object],
) -> None:
    loopback_hub.seed(REPO, base_folder)
    told = loopback_hub.fail(route, **fault)
    process = client()
    remote = process.call(hub.resolve_repo, REPO)
    folder = process.call(hub.fetch_files, remote, WANTED)
    assert told.times == 0
    for name in WANTED:
        assert (folder / name).read_bytes() == (base_folder / name).read_bytes()
    assert process.printed() == ""


def test_a_lasting_failure_is_an_error_with_a_next_step(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder)
    loopback_hub.fail("model_info", times=99, status=500)
    with pytest.raises(BaseError, match="broke off") as caught:
        client().call(hub.resolve_repo, REPO)
    assert "again" in caught.value.hint


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "tokenizer.json"])
def test_altered_bytes_are_noticed(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path, name: str
) -> None:
    commit = loopback_hub.seed(REPO, base_folder)
    stored = commit.files[name]
    route, containing = ("object", stored.sha256) if stored.lfs else ("resolve", name)
    loopback_hub.fail(route, alter=True, containing=containing, method="GET", times=99)
    process = client()
    remote = process.call(hub.resolve_repo, REPO)
    with pytest.raises(BaseMismatchError) as caught:
        process.call(hub.fetch_files, remote, WANTED)
    problem = caught.value
    assert problem.what.startswith(name)
    assert (stored.sha256 if stored.lfs else stored.blob_id) in problem.expected
    assert problem.hint.startswith(f"hf download {REPO} {name} --revision {commit.oid} --force")
    # The altered file is still in the cache, and is not trusted the next time either.
    loopback_hub.heal()
    with pytest.raises(BaseMismatchError, match=name):
        process.call(hub.fetch_files, remote, WANTED)


def test_a_file_changed_in_the_cache_is_noticed(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder)
    process = client()
    remote = process.call(hub.resolve_repo, REPO)
    folder = process.call(hub.fetch_files, remote, WANTED)
    blob = (folder / "model-00001-of-00002.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(BaseMismatchError, match="model-00001"):
        process.call(hub.fetch_files, remote, WANTED)


def test_gated_without_and_with_agreement(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder, gated=True)
    token = loopback_hub.add_token("hf_evecannotread", "eve", "read")
    for process in (client(), client(token=token)):
        remote = process.call(hub.resolve_repo, REPO)
        assert remote.gated is True
        with pytest.raises(BaseError, match="gated") as caught:
            process.call(hub.fetch_files, remote, WANTED)
        page = f"{loopback_hub.endpoint}/{REPO}"
        assert caught.value.hint == f"accept the terms at {page}, then: hf auth login"
    loopback_hub.repo(REPO).granted.add("eve")
    folder = client(token=token).call(hub.fetch_files, remote, WANTED)
    assert (folder / "LICENSE").read_text() == "Apache License 2.0"


def test_refusals_name_the_next_command(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder, private=True)
    loopback_hub.seed("org/open", base_folder)
    token = loopback_hub.add_token("hf_strangertoken", "stranger", "read")
    nobody, stranger, wrong = client(), client(token=token), client(token="hf_nosuchtoken99")
    for process in (nobody, stranger):
        with pytest.raises(BaseError, match="no such repository") as caught:
            process.call(hub.resolve_repo, REPO)
        assert "hf auth login" in caught.value.hint
        assert REPO in caught.value.hint
    with pytest.raises(BaseError, match="does not know this token") as caught:
        wrong.call(hub.resolve_repo, "org/open")
    assert caught.value.hint == "hf auth login --force"
    with pytest.raises(BaseError, match="no such revision") as caught:
        nobody.call(hub.resolve_repo, "org/open", "v9")
    assert f"{loopback_hub.endpoint}/org/open/commits" in caught.value.hint
    loopback_hub.fail("model_info", status=403)
    with pytest.raises(BaseError, match="rights") as caught:
        nobody.call(hub.resolve_repo, "org/open")
    assert "settings/tokens" in caught.value.hint


def test_offline_works_from_the_cache_and_says_what_to_do_without(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path, tmp_path: Path
) -> None:
    commit = loopback_hub.seed(REPO, base_folder)
    home = tmp_path / "home"
    online = client(home=home)
    remote = online.call(hub.resolve_repo, REPO)
    folder = online.call(hub.fetch_files, remote, WANTED)
    offline = client(home=home, environment={"HF_HUB_OFFLINE": "1"})
    loopback_hub.forget()
    pinned = offline.call(hub.resolve_repo, REPO, commit.oid)
    assert (pinned.commit, pinned.source, pinned.license) == (commit.oid, "cache", "apache-2.0")
    digests = {file.name: (file.sha256, file.size) for file in remote.files}
    for file in pinned.files:
        assert (file.sha256, file.size) == digests[file.name]
    assert hub.wanted_base_files(pinned) == WANTED
    assert offline.call(hub.fetch_files, pinned, WANTED) == folder
    assert offline.call(hub.weight_changes_since, REPO, datetime.now(UTC), commit.oid) == ()
    assert loopback_hub.requests == []
    with pytest.raises(BaseError, match="cannot be reached") as caught:
        offline.call(hub.resolve_repo, REPO, "a" * 40)
    assert f"hf download {REPO} --revision {'a' * 40}" in caught.value.hint
    with pytest.raises(BaseError, match="cannot be reached"):
        offline.call(hub.resolve_repo, "org/never")


def test_a_hub_that_does_not_answer_is_offline_too(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path, tmp_path: Path
) -> None:
    commit = loopback_hub.seed(REPO, base_folder, gated=False)
    home = tmp_path / "home"
    online = client(home=home)
    remote = online.call(hub.resolve_repo, REPO, commit.oid)
    online.call(hub.fetch_files, remote, WANTED)
    dead = client(home=home, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    found = dead.call(hub.resolve_repo, REPO, commit.oid)
    assert (found.source, found.commit) == ("cache", commit.oid)
    with pytest.raises(BaseError, match="cannot be reached"):
        dead.call(hub.resolve_repo, "org/never")


def test_offline_a_card_with_a_gate_counts_as_gated(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path, tmp_path: Path
) -> None:
    card = "---\nlicense: gemma\nextra_gated_prompt: You agree to the terms.\n---\n"
    (base_folder / "README.md").write_text(card, encoding="utf-8")
    commit = loopback_hub.seed(REPO, base_folder)
    home = tmp_path / "home"
    online = client(home=home)
    online.call(hub.fetch_files, online.call(hub.resolve_repo, REPO), WANTED)
    offline = client(home=home, environment={"HF_HUB_OFFLINE": "1"})
    found = offline.call(hub.resolve_repo, REPO, commit.oid)
    assert (found.gated, found.license) == (True, "gemma")


def changes_of(hub_: LoopbackHub, folder: Path) -> list[tuple[str, datetime]]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    made = []
    for day, title in enumerate(["Add model", "Fix README", "Fix weights of shard 2", "Typo"]):
        if title.startswith("Fix weights"):
            shard = folder / "model-00002-of-00002.safetensors"
            shard.write_bytes(shard.read_bytes()[:-4] + b"new!")
        else:
            readme = folder / "README.md"
            readme.write_text(readme.read_text(encoding="utf-8") + title, encoding="utf-8")
        date = start + timedelta(days=day)
        made.append((hub_.seed(REPO, folder, title=title, date=date).oid, date))
    return made


def test_weight_changes_after_the_adapter_are_found(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    made = changes_of(loopback_hub, base_folder)
    head = made[-1][0]
    process = client()
    (change,) = process.call(hub.weight_changes_since, REPO, made[1][1], head)
    assert (change.commit, change.date) == made[2]
    assert change.title == "Fix weights of shard 2"
    assert change.files == ("model-00002-of-00002.safetensors",)
    # Made after the change, or pinned to before it: nothing to tell.
    assert process.call(hub.weight_changes_since, REPO, made[2][1], head) == ()
    assert process.call(hub.weight_changes_since, REPO, made[0][1], made[1][0]) == ()


def test_a_change_that_was_taken_back_is_none(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    shard = base_folder / "model-00002-of-00002.safetensors"
    original = shard.read_bytes()
    made = changes_of(loopback_hub, base_folder)
    shard.write_bytes(original)
    head = loopback_hub.seed(REPO, base_folder, title="Revert", date=made[-1][1] + timedelta(1))
    assert client().call(hub.weight_changes_since, REPO, made[0][1], head.oid) == ()


def test_a_repository_younger_than_the_adapter_is_all_new(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    made = changes_of(loopback_hub, base_folder)
    before = made[0][1] - timedelta(days=1)
    changes = client().call(hub.weight_changes_since, REPO, before, made[-1][0])
    assert [change.title for change in changes] == ["Fix weights of shard 2", "Add model"]
    assert changes[1].files == (
        "consolidated.safetensors",
        "model-00001-of-00002.safetensors",
        "training_args.bin",
    )


def test_history_of_several_pages(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    first = loopback_hub.seed(REPO, base_folder, date=start)
    shard = base_folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"new!")
    for number in range(1, 71):
        (base_folder / "NOTES.md").write_text(str(number), encoding="utf-8")
        head = loopback_hub.seed(REPO, base_folder, date=start + timedelta(hours=number))
    (change,) = client().call(hub.weight_changes_since, REPO, start, head.oid)
    assert change.date == start + timedelta(hours=1)
    assert head.oid != first.oid
    assert len(loopback_hub.asked("commits")) == 2


def repo_with(*names: str) -> RemoteRepo:
    files = tuple(RemoteFile(name, 1, None, None) for name in names)
    return RemoteRepo(
        REPO, "0" * 40, None, True, False, None, None, files, None, "hub"
    )  # fmt: skip


def test_pickled_weights_are_refused_with_the_way_to_convert() -> None:
    with pytest.raises(UnsafeInputError, match="pickle") as caught:
        hub.wanted_base_files(repo_with("config.json", "pytorch_model.bin"))
    assert "safe_serialization=True" in caught.value.hint
    assert "spaces/safetensors/convert" in caught.value.hint
    with pytest.raises(BaseError, match="no weights"):
        hub.wanted_base_files(repo_with("config.json", "model.gguf"))


def test_one_set_of_weights_is_chosen() -> None:
    names = ("config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")
    assert hub.wanted_base_files(repo_with(*names)) == ("config.json", "model.safetensors")


def test_a_name_that_leads_outside_is_refused(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder)
    repo = loopback_hub.repo(REPO)
    files = dict(repo.commit("main").files)
    files["../outside.json"] = files["config.json"]
    loopback_hub.store.add_commit(repo, files, title="evil", author="eve")
    with pytest.raises(UnsafeInputError, match="outside"):
        client().call(hub.resolve_repo, REPO)


def test_a_file_that_is_not_there_is_an_error(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path
) -> None:
    loopback_hub.seed(REPO, base_folder)
    process = client()
    remote = process.call(hub.resolve_repo, REPO)
    with pytest.raises(BaseError, match="not there") as caught:
        process.call(hub.fetch_files, remote, ["config.json", "nothing.json"])
    assert caught.value.expected == "nothing.json"


def test_a_hub_started_again_has_everything(
    loopback_hub: LoopbackHub, client: StartClient, base_folder: Path, tmp_path: Path
) -> None:
    commit = loopback_hub.seed(REPO, base_folder, gated=True)
    copy = tmp_path / "copy"
    shutil.copytree(loopback_hub.store.root, copy)
    again = LoopbackHub(copy)
    with again:
        assert again.repo(REPO).gated is True
        assert again.repo(REPO).commit("main") == commit
        assert again.files(REPO) == loopback_hub.files(REPO)
