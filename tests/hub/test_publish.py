"""Publishing with the real client to the loopback Hub: order, resume, races, bad days."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import BundleError, HubError
from packager.publish import PublishedRepo, publish_hub
from packager.publish.state import is_entry, is_loaded
from tests.hub.bundle import SHARDS, contents, seal, write_bundle
from tests.loopback_hub import Client, LoopbackHub

StartClient = Callable[..., Client]
REPO = "alice/pirate"
TOKEN = "hf_alicesownwritetoken"
MERGED = (("merged", "pirate"),)


@pytest.fixture
def alice(loopback_hub: LoopbackHub, client: StartClient) -> Client:
    """A client with a token that may write to alice's repositories."""
    loopback_hub.add_token(TOKEN, "alice")
    return client(token=TOKEN)


def held(hub: LoopbackHub, repo: str = REPO) -> dict[str, bytes]:
    files = hub.files(repo)
    files.pop(".gitattributes", None)
    return files


def sent(hub: LoopbackHub) -> list[str]:
    """The sha256 of every large file whose bytes arrived whole."""
    return [request.path.split("/")[2] for request in hub.asked("upload") if request.status == 200]


def shard_digests(bundle: Path) -> list[str]:
    folder = bundle / "merged/pirate"
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHARDS]


def check_never_half(hub: LoopbackHub, repo: str = REPO) -> None:
    """At every commit, whatever can be loaded comes from one release: seeds agree."""
    stored = hub.repo(repo)
    for commit in stored.history(stored.refs["main"]):
        files = hub.files(repo, commit.oid)
        if not any(is_entry(name) for name in files):
            continue
        config = files["config.json"]
        index = files["model.safetensors.index.json"]
        assert config.split(b'"seed":')[1] == index.split(b'"seed":')[1]
        assert {name for name in files if name.endswith(".safetensors")} == set(SHARDS)


def test_a_merged_model_arrives_weights_first(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (made,) = alice.call(publish_hub, bundle, REPO)
    assert held(loopback_hub) == contents(bundle / "merged/pirate")
    repo = loopback_hub.repo(REPO)
    last, weights, first = repo.history(repo.refs["main"])
    assert set(weights.files) == {".gitattributes", *SHARDS}
    assert set(first.files) == {".gitattributes"}
    assert made.commit == last.oid
    assert (made.repo, made.url) == (REPO, f"{loopback_hub.endpoint}/{REPO}")
    assert (made.target, made.name, made.existed) == ("merged", "pirate", False)
    assert {file.state for file in made.files} == {"new"}
    assert {file.path for file in made.files} == set(contents(bundle / "merged/pirate"))
    assert repo.private is made.private is False
    assert alice.printed() == ""


def test_every_commit_is_guarded_by_its_parent(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    heads: list[str] = []
    loopback_hub.fail(
        "commit", times=9, action=lambda: heads.append(loopback_hub.repo(REPO).refs["main"])
    )
    alice.call(publish_hub, write_bundle(tmp_path / "bundle"), REPO)
    repo = loopback_hub.repo(REPO)
    assert heads == [commit.parent for commit in reversed(repo.history(repo.refs["main"])[:-1])]
    for oid in heads:  # An unguarded commit would be taken on any head; these are refused.
        assert oid in repo.commits


def test_one_repository_per_target(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    targets = (("adapter", "pirate"), ("merged", "pirate"), ("adapter", "poet"))
    bundle = write_bundle(tmp_path / "bundle", targets)
    made = alice.call(publish_hub, bundle, "alice/m")
    assert [repo.repo for repo in made] == [
        "alice/m-pirate-adapter",
        "alice/m-pirate",
        "alice/m-poet",
    ]
    for repo, (target, name) in zip(made, targets, strict=True):
        assert held(loopback_hub, repo.repo) == contents(bundle / target / name)


def test_publishing_again_sends_and_commits_nothing(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (first,) = alice.call(publish_hub, bundle, REPO)
    loopback_hub.forget()
    (second,) = alice.call(publish_hub, bundle, REPO)
    assert second.commit == first.commit
    assert {file.state for file in second.files} == {"unchanged"}
    assert second.sent_bytes == 0
    for route in ("upload", "lfs_batch", "preupload", "commit", "create_repo"):
        assert loopback_hub.asked(route) == []


def test_a_dry_run_checks_everything_and_writes_nothing(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (plan,) = alice.call(publish_hub, bundle, REPO, dry_run=True)
    assert (plan.commit, plan.existed) == (None, False)
    assert plan.sent_bytes == sum(map(len, contents(bundle / "merged/pirate").values()))
    assert REPO not in loopback_hub.store.repos
    routes = {request.route for request in loopback_hub.requests}
    assert routes == {"model_info", "whoami", "validate_yaml"}
    assert alice.printed() == ""
    (made,) = alice.call(publish_hub, bundle, REPO)
    assert made.files == plan.files


def test_a_new_release_replaces_the_old_one_in_one_commit(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    alice.call(publish_hub, bundle, REPO)
    before = len(loopback_hub.repo(REPO).commits)
    again = write_bundle(tmp_path / "again", seed=1)
    (made,) = alice.call(publish_hub, again, REPO)
    assert held(loopback_hub) == contents(again / "merged/pirate")
    assert len(loopback_hub.repo(REPO).commits) == before + 1
    states = {file.path: file.state for file in made.files}
    assert states["config.json"] == states[SHARDS[0]] == "changed"
    assert states["tokenizer.json"] == "unchanged"
    check_never_half(loopback_hub)


def test_leftovers_that_would_be_loaded_go_and_others_stay(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    gone = ("model.safetensors", "adapter_config.json", "added_tokens.json", "modeling_x.py")
    stays = ("picture.png", "onnx/model.onnx", "NOTES.md")
    (old / "onnx").mkdir()
    for name in (*gone, *stays):
        (old / name).write_text(name, encoding="utf-8")
    loopback_hub.seed(REPO, old)
    bundle = write_bundle(tmp_path / "bundle")
    (made,) = alice.call(publish_hub, bundle, REPO)
    assert made.removed == tuple(sorted(gone))
    assert set(held(loopback_hub)) == {*contents(bundle / "merged/pirate"), *stays}
    # It could be loaded before, so everything came in one commit.
    assert len(loopback_hub.repo(REPO).commits) == 2


def test_a_killed_upload_resumes_without_finished_files(
    loopback_hub: LoopbackHub, alice: Client, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    first, second = shard_digests(bundle)
    fault = loopback_hub.fail("upload", containing=second, cut_after=10_000)
    fault.action = alice.process.kill
    alice.start(publish_hub, bundle, REPO)
    alice.process.wait(60)
    assert sent(loopback_hub) == [first]
    check_never_half(loopback_hub)
    loopback_hub.forget()
    client(token=TOKEN).call(publish_hub, bundle, REPO)
    assert sent(loopback_hub) == [second]
    assert held(loopback_hub) == contents(bundle / "merged/pirate")


def test_a_run_killed_between_the_commits_is_not_loadable_and_resumes(
    loopback_hub: LoopbackHub, alice: Client, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")

    def kill_at_the_second() -> None:
        if len(loopback_hub.repo(REPO).commits) == 2:
            alice.process.kill()
            alice.process.wait(60)

    loopback_hub.fail("preupload", times=99, action=kill_at_the_second)
    alice.start(publish_hub, bundle, REPO)
    alice.process.wait(60)
    assert set(held(loopback_hub)) == set(SHARDS)
    loopback_hub.heal()
    loopback_hub.forget()
    client(token=TOKEN).call(publish_hub, bundle, REPO)
    assert sent(loopback_hub) == []
    assert held(loopback_hub) == contents(bundle / "merged/pirate")
    check_never_half(loopback_hub)


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("whoami", {"status": 429, "retry_after": 0}),
        ("model_info", {"status": 500}),
        ("validate_yaml", {"status": 503}),
        ("create_repo", {"status": 500}),
        ("preupload", {"status": 429, "retry_after": 0}),
        ("lfs_batch", {"cut_after": 20}),
        ("upload", {"status": 500}),
        ("upload", {"cut_after": 50_000}),
        ("lfs_verify", {"status": 500}),
        ("commit", {"status": 500}),
        ("commit", {"status": 429, "retry_after": 0}),
        ("commit", {"cut_after": 100}),
        ("tree", {"cut_after": 30}),
        ("resolve", {"status": 500, "method": "GET"}),
    ],
)
def test_a_short_failure_is_waited_out(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path, route: str, fault: dict[str, object]
) -> None:
    bundle = write_bundle(tmp_path / "bundle", (("adapter", "pirate"),))
    told = loopback_hub.fail(route, **fault)
    alice.call(publish_hub, bundle, REPO)
    assert told.times == 0
    assert held(loopback_hub) == contents(bundle / "adapter/pirate")
    assert len(loopback_hub.repo(REPO).commits) == 3
    assert alice.printed() == ""


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    loopback_hub.fail("commit", times=2, lose_reply=True)
    (made,) = alice.call(publish_hub, bundle, REPO)
    repo = loopback_hub.repo(REPO)
    assert made.commit == repo.refs["main"]
    assert len(repo.commits) == 3
    assert held(loopback_hub) == contents(bundle / "merged/pirate")


def test_a_refused_upload_ends_and_the_next_run_goes_on(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    first, second = shard_digests(bundle)
    loopback_hub.fail("upload", containing=second, status=403, message="quota used up")
    with pytest.raises(HubError) as caught:
        alice.call(publish_hub, bundle, REPO)
    assert "quota used up" in caught.value.found
    assert held(loopback_hub) == {}
    loopback_hub.forget()
    alice.call(publish_hub, bundle, REPO)
    assert sent(loopback_hub) == [second]
    assert held(loopback_hub) == contents(bundle / "merged/pirate")
    assert first != second


def test_large_files_in_parts(loopback_hub: LoopbackHub, alice: Client, tmp_path: Path) -> None:
    loopback_hub.multipart_bytes = 50_000
    bundle = write_bundle(tmp_path / "bundle")
    loopback_hub.fail("part", containing="/2", cut_after=1_000)
    alice.call(publish_hub, bundle, REPO)
    assert len([item for item in loopback_hub.asked("part") if item.status == 200]) == 8
    assert held(loopback_hub) == contents(bundle / "merged/pirate")


def intrude(hub: LoopbackHub) -> None:
    repo = hub.repo(REPO)
    head = repo.commit("main")
    assert head is not None
    files = {**head.files, "NOTES.md": hub.store.put_small(b"somebody else")}
    hub.store.add_commit(repo, files, title="Somebody else", author="bob")


def test_somebody_elses_commit_in_between_is_an_error(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    alice.call(publish_hub, bundle, REPO)
    old = held(loopback_hub)
    again = write_bundle(tmp_path / "again", seed=1)
    loopback_hub.fail("commit", action=lambda: intrude(loopback_hub))
    with pytest.raises(HubError, match="another commit") as caught:
        alice.call(publish_hub, again, REPO)
    assert "run again" in caught.value.hint
    assert held(loopback_hub) == {**old, "NOTES.md": b"somebody else"}
    loopback_hub.forget()
    alice.call(publish_hub, again, REPO)
    assert sent(loopback_hub) == []
    wanted = contents(again / "merged/pirate")
    assert held(loopback_hub) == {**wanted, "NOTES.md": b"somebody else"}


def test_what_is_read_back_is_compared_by_digest(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    loopback_hub.fail("resolve", alter=True, containing="config.json", method="GET")
    with pytest.raises(HubError, match="something else than was sent") as caught:
        alice.call(publish_hub, bundle, REPO)
    assert "config.json" in caught.value.found

    def swap() -> None:
        repo = loopback_hub.repo(REPO)
        head = repo.commit("main")
        assert head is not None
        head.files[SHARDS[0]] = head.files[SHARDS[1]]
        del head.files["LICENSE"]
        head.files["pytorch_model.bin"] = head.files[SHARDS[1]]

    loopback_hub.fail("tree", action=swap)
    with pytest.raises(HubError, match="something else than was sent") as caught:
        alice.call(publish_hub, bundle, REPO)
    assert SHARDS[0] in caught.value.found
    assert "LICENSE is missing" in caught.value.found
    assert "pytorch_model.bin is not of this release" in caught.value.found


def test_an_altered_bundle_is_refused_before_any_request(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    shard = bundle / "merged/pirate" / SHARDS[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (bundle / "merged/pirate/extra.json").write_text("{}", encoding="utf-8")
    (bundle / "merged/pirate/LICENSE").unlink()
    with pytest.raises(BundleError) as caught:
        alice.call(publish_hub, bundle, REPO)
    for text in (SHARDS[0], "extra.json is not in the manifest", "LICENSE is missing"):
        assert text in caught.value.found
    with pytest.raises(BundleError, match="not a bundle"):
        alice.call(publish_hub, tmp_path, REPO)
    assert loopback_hub.requests == []


@pytest.mark.parametrize("validator", [True, False])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# no metadata\n", "license is missing"),
        ("---\nlicense: [\n---\n", "YAML"),
        ("---\nlicense: mit\nbase_model: org/base\n---\n", "library_name is missing"),
        (
            "---\nlicense: mit\nlibrary_name: peft\nbase_model: org/other\n---\n",
            "base_model is not org/base",
        ),
    ],
)
def test_a_bad_card_is_refused_before_the_first_byte(
    loopback_hub: LoopbackHub,
    alice: Client,
    tmp_path: Path,
    text: str,
    found: str,
    validator: bool,
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "merged/pirate/README.md").write_text(text, encoding="utf-8")
    seal(bundle, MERGED)
    if not validator:
        loopback_hub.fail("validate_yaml", times=99, status=404)
    with pytest.raises(HubError, match="card") as caught:
        alice.call(publish_hub, bundle, REPO)
    assert found in caught.value.found
    assert REPO not in loopback_hub.store.repos


def test_the_hubs_own_validator_is_asked(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    readme = bundle / "merged/pirate/README.md"
    text = readme.read_text(encoding="utf-8").replace("apache-2.0", "apache-2.o")
    readme.write_text(text, encoding="utf-8")
    seal(bundle, MERGED)
    with pytest.raises(HubError, match="card") as caught:
        alice.call(publish_hub, bundle, REPO)
    assert "must be one of" in caught.value.found
    readme.unlink()
    seal(bundle, MERGED)
    with pytest.raises(BundleError, match="no model card"):
        alice.call(publish_hub, bundle, REPO)
    assert REPO not in loopback_hub.store.repos


def test_folders_of_this_machine_are_not_published(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", directory="/home/海/models/base")
    config = bundle / "merged/pirate/config.json"
    config.write_text('{"_name_or_path": "/home/\\u6d77/models/base"}', encoding="utf-8")
    seal(bundle, MERGED, directory="/home/海/models/base")
    with pytest.raises(BundleError, match="folder of this machine") as caught:
        alice.call(publish_hub, bundle, REPO)
    assert caught.value.where == str(config)
    assert loopback_hub.requests == []
    alice.call(publish_hub, write_bundle(bundle, directory="/home/海/models/base"), REPO)
    for data in held(loopback_hub).values():
        assert "/home/海".encode() not in data
    assert "lorapack.json" not in held(loopback_hub)


def test_progress_counts_every_byte(
    loopback_hub: LoopbackHub, alice: Client, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    total = sum(map(len, contents(bundle / "merged/pirate").values()))
    stages = alice.call(publish_and_count, bundle, REPO)
    assert stages["checking the bundle"] == stages[f"sending {REPO}"] == (total, total)
    assert f"reading back {REPO}" in stages


def publish_and_count(bundle: Path, repo: str) -> dict[str, tuple[int | None, int]]:
    """Runs in the client: stage → (announced, counted) bytes."""
    stages: dict[str, tuple[int | None, int]] = {}

    class Counter:
        title = ""

        def stage(self, title: str, total_bytes: int | None = None) -> None:
            self.title = title
            stages[title] = (total_bytes, 0)

        def advance(self, count: int) -> None:
            total, done = stages[self.title]
            stages[self.title] = (total, done + count)

        def say(self, line: str) -> None:
            raise AssertionError(line)

    made: tuple[PublishedRepo, ...] = publish_hub(bundle, repo, progress=Counter())
    assert len(made) == 1
    return stages


def test_what_a_loader_reads() -> None:
    for name in ("model.safetensors", "vocab.json", "chat_template.jinja", "x.index.json"):
        assert is_loaded(name), name
    for name in ("README.md", "LICENSE", "onnx/config.json", "picture.png", ".gitattributes"):
        assert not is_loaded(name), name
