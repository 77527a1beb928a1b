"""Large files through Xet storage, which is how the installed client talks to huggingface.co.

The other tests of publishing run against a Hub without it, where the same client uses LFS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from packager import hub
from packager.errors import BaseMismatchError, HubError
from packager.publish import publish_hub
from tests.hub.bundle import SHARDS, contents, seal, write_bundle
from tests.loopback_hub import Client, LoopbackHub
from tests.loopback_hub.xorb import parse_chunks

StartClient = Callable[..., Client]
REPO = "alice/pirate"
TOKEN = "hf_alicesownwritetoken"


@pytest.fixture
def xet_hub(loopback_hub: LoopbackHub) -> LoopbackHub:
    loopback_hub.xet = True
    loopback_hub.add_token(TOKEN, "alice")
    return loopback_hub


def held(loopback: LoopbackHub) -> dict[str, bytes]:
    files = loopback.files(REPO)
    files.pop(".gitattributes", None)
    return files


def arrived(loopback: LoopbackHub) -> list[str]:
    """The xorbs whose bytes arrived whole."""
    return [request.path for request in loopback.asked("xorb") if request.status == 200]


def test_weights_go_to_xet_storage_and_come_back(
    xet_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    process = client(token=TOKEN)
    (made,) = process.call(publish_hub, bundle, REPO)
    wanted = contents(bundle / "merged/pirate")
    assert held(xet_hub) == wanted
    assert xet_hub.asked("lfs_batch") == xet_hub.asked("upload") == []
    assert len(arrived(xet_hub)) == len(SHARDS)
    remote = process.call(hub.resolve_repo, REPO, made.commit)
    folder = process.call(hub.fetch_files, remote, SHARDS)
    assert {name: (folder / name).read_bytes() for name in SHARDS} == {
        name: wanted[name] for name in SHARDS
    }
    assert len(xet_hub.asked("signed")) == len(SHARDS)
    assert xet_hub.asked("object") == []
    assert process.printed() == ""


def test_every_way_of_packing(xet_hub: LoopbackHub, client: StartClient, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    numbers = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)
    words = np.frombuffer(b"the same words over and over again, " * 8000, np.uint8)
    for name, value in zip(SHARDS, (numbers, words), strict=True):
        save_file({name[:11]: value}, bundle / "merged/pirate" / name)
    seal(bundle, (("merged", "pirate"),))
    client(token=TOKEN).call(publish_hub, bundle, REPO)
    assert held(xet_hub) == contents(bundle / "merged/pirate")
    xorbs = [path.read_bytes() for path in (xet_hub.store.root / "xet").glob("*.xorb")]
    assert {chunk.scheme for xorb in xorbs for chunk in parse_chunks(xorb)} >= {1, 2}


def test_a_killed_upload_resumes_without_finished_files(
    xet_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    home = tmp_path / "home"
    first = client(token=TOKEN, home=home)

    def kill_at_the_second() -> None:
        if arrived(xet_hub):
            first.process.kill()
            first.process.wait(60)

    xet_hub.fail("xorb", times=99, action=kill_at_the_second)
    first.start(publish_hub, bundle, REPO)
    first.process.wait(60)
    (finished,) = set(arrived(xet_hub)[:1])
    assert held(xet_hub) == {}
    xet_hub.heal()
    xet_hub.forget()
    client(token=TOKEN, home=home).call(publish_hub, bundle, REPO)
    assert finished not in arrived(xet_hub)
    assert held(xet_hub) == contents(bundle / "merged/pirate")


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("xet_token", {"status": 503}),
        ("xorb", {"status": 500}),
        ("xorb", {"cut_after": 50_000}),
        ("shard", {"status": 503}),
        ("shard", {"lose_reply": True}),
    ],
)
def test_a_short_failure_is_waited_out(
    xet_hub: LoopbackHub,
    client: StartClient,
    tmp_path: Path,
    route: str,
    fault: dict[str, object],
) -> None:
    bundle = write_bundle(tmp_path / "bundle", (("adapter", "pirate"),))
    told = xet_hub.fail(route, **fault)
    process = client(token=TOKEN)
    process.call(publish_hub, bundle, REPO)
    assert told.times == 0
    assert held(xet_hub) == contents(bundle / "adapter/pirate")
    assert process.printed() == ""


def test_a_refusal_of_the_storage_is_an_error_without_secrets(
    xet_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    xet_hub.fail("xorb", times=99, status=403, message="quota used up")
    with pytest.raises(HubError) as caught:
        client(token=TOKEN).call(publish_hub, bundle, REPO)
    assert "403" in caught.value.found
    assert caught.value.hint
    assert TOKEN not in str(caught.value) + repr(caught.value.__dict__)
    assert "short-lived" not in str(caught.value)
    assert held(xet_hub) == {}


def test_altered_bytes_of_a_base_are_noticed(
    xet_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    process = client(token=TOKEN)
    (made,) = process.call(publish_hub, bundle, REPO)
    xet_hub.fail("signed", alter=True, times=99)
    remote = process.call(hub.resolve_repo, REPO, made.commit)
    with pytest.raises(BaseMismatchError, match=r"model-0000\d"):
        process.call(hub.fetch_files, remote, SHARDS)


def test_a_hub_without_xet_gets_the_files_by_lfs(
    loopback_hub: LoopbackHub, client: StartClient, tmp_path: Path
) -> None:
    loopback_hub.add_token(TOKEN, "alice")
    bundle = write_bundle(tmp_path / "bundle")
    client(token=TOKEN).call(publish_hub, bundle, REPO)
    assert [request.status for request in loopback_hub.asked("xet_token")] == [404]
    sent = {request.path.split("/")[2] for request in loopback_hub.asked("upload")}
    folder = bundle / "merged/pirate"
    assert sent == {hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHARDS}
    assert held(loopback_hub) == contents(folder)
