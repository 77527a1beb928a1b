"""`base.lock.json`: round trip, refusal of another base with the files that differ, precedence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.adapter import read_adapter
from packager.base import read_base
from packager.base.ref import read_local_base
from packager.digest import content_digest
from packager.errors import (
    BaseError,
    BaseMismatchError,
    InputError,
    RejectedPlanError,
    UnsafeInputError,
)
from packager.gather import gather
from packager.lock import (
    BaseLock,
    locate_base,
    make_lock,
    parse_lock,
    read_lock,
    render_lock,
    write_lock,
)
from packager.manifest import FileEntry
from packager.progress import Silent
from packager.stamp import stamp_lock
from tests.folders import Q_PROJ, pair, write_adapter, write_base, write_tensors
from tests.loopback_hub import Client, LoopbackHub
from tests.loopback_hub.fixture import client, client_pool, hub_server, loopback_hub

__all__ = ["client", "client_pool", "hub_server", "loopback_hub"]

hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
paths = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="/\\:"),
            min_size=1, max_size=8).filter(lambda part: part not in (".", "..")),
    min_size=1, max_size=3,
).map("/".join)  # fmt: skip
entries = st.builds(FileEntry, path=paths, size=st.integers(0, 1 << 50), sha256=hexadecimal)
origins = st.one_of(
    st.just((None, None)),
    st.tuples(st.just("org/name"), st.from_regex(r"[0-9a-f]{40}", fullmatch=True)),
)  # fmt: skip


@st.composite
def locks(draw: st.DrawFn) -> BaseLock:
    files = tuple(draw(st.lists(entries, max_size=4, unique_by=lambda entry: entry.path)))
    repo, commit = draw(origins)
    digests = st.one_of(st.none(), hexadecimal.map("sha256:{}".format))
    return BaseLock(
        schema_version=1,
        repo=repo,
        commit=commit,
        digest=content_digest(files),
        files=files,
        tensor_fingerprint=draw(hexadecimal),
        tokenizer_digest=draw(digests),
        chat_template_digest=draw(digests),
        training_quantization=draw(
            st.one_of(st.none(), st.dictionaries(st.text(), st.text() | st.booleans()))
        ),
        created=draw(st.datetimes().map(str)),
        tool="lorapack 0.1.0",
    )


@given(locks())
def test_a_lock_survives_writing_and_parsing(lock: BaseLock) -> None:
    assert parse_lock(render_lock(lock), where="x") == lock
    assert parse_lock(render_lock(lock).encode(), where="x") == lock


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = write_base(tmp_path / "底座")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (base / name).write_text('{"词": "🏴‍☠️"}', encoding="utf-8")
    return base


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "适配器", base_model_name_or_path=str(base))


def locate(adapter: Path, ref: str | None = None, **options: Any) -> tuple[Path, str]:
    found, evidence = locate_base(read_adapter(adapter), ref, say=lambda _: None, **options)
    return found.directory, evidence


def test_a_lock_describes_the_base(base: Path, adapter: Path) -> None:
    lock = write_lock(adapter, read_local_base(base))
    assert read_lock(adapter) == lock
    assert [entry.path for entry in lock.files] == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert lock.digest == content_digest(lock.files)
    assert lock.tensor_fingerprint == read_base(base).fingerprint
    template, _, _, tokenizer = lock.files
    assert lock.chat_template_digest == content_digest([template])
    assert lock.tokenizer_digest == content_digest([template, tokenizer])
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "base.lock.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("schema_version", 2), ("schema_version", None), ("digest", "sha256:" + "0" * 64),
        ("digest", 5), ("files", None), ("files", [{"path": "a"}]), ("files", "x"),
        ("files", [{"path": "a", "size": 1, "sha256": "0" * 64, "more": 1}]),
        ("repo", 5), ("repo", "../x"), ("repo", "a/b@main"), ("commit", 7), ("created", None),
        ("something_new", 1), ("training_quantization", "int4"), ("tokenizer_digest", []),
    ],
)  # fmt: skip
def test_a_damaged_lock_is_refused(base: Path, change: str, value: Any) -> None:
    raw = json.loads(render_lock(make_lock(read_local_base(base))))
    raw[change] = value
    with pytest.raises(InputError, match="lock is damaged") as caught:
        parse_lock(json.dumps(raw), where="there")
    assert caught.value.where == "there"
    assert "lorapack lock" in caught.value.hint


def test_a_lock_that_leads_outside_is_refused(base: Path) -> None:
    lock = make_lock(read_local_base(base))
    files = (*lock.files, FileEntry("../../etc/passwd", 1, "0" * 64))
    bad = dataclasses.replace(lock, files=files, digest=content_digest(files))
    with pytest.raises((InputError, UnsafeInputError), match=r"outside|damaged"):
        parse_lock(render_lock(bad), where="x")


def change_weights(base: Path) -> None:
    path = base / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def grow_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").write_text('{"词": "🏴‍☠️!"}', encoding="utf-8")


def lose_template(base: Path) -> None:
    (base / "chat_template.jinja").unlink()


def gain_vocabulary(base: Path) -> None:
    (base / "vocab.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (change_weights, "model.safetensors has sha256 "),
        (grow_tokenizer, "tokenizer.json has 25 bytes, not 24"),
        (lose_template, "chat_template.jinja is missing"),
        (gain_vocabulary, "vocab.json is not in the lock"),
    ],
)
def test_another_base_is_refused_with_the_files_that_differ(
    base: Path, adapter: Path, change: Callable[[Path], None], line: str
) -> None:
    write_lock(adapter, read_local_base(base))
    assert locate(adapter) == (base, "lock")
    change(base)
    for ref in (None, str(base)):
        with pytest.raises(BaseMismatchError, match="1 of 4 files") as caught:
            locate(adapter, ref)
        assert line in caught.value.found
        assert ";" not in caught.value.found
        assert "lorapack lock" in caught.value.hint


def test_every_file_that_differs_is_shown(base: Path, adapter: Path) -> None:
    write_lock(adapter, read_local_base(base))
    for change in (change_weights, grow_tokenizer, lose_template):
        change(base)
    with pytest.raises(BaseMismatchError, match="3 of 4 files") as caught:
        locate(adapter)
    assert [line.split()[0] for line in caught.value.found.split("; ")] == [
        "chat_template.jinja", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_require_lock_refuses_an_adapter_without_one(base: Path, adapter: Path) -> None:
    with pytest.raises(BaseMismatchError, match="no base lock") as caught:
        locate(adapter, str(base), require_lock=True)
    assert caught.value.hint == f"lorapack lock {adapter} --base REF"
    write_lock(adapter, read_local_base(base))
    assert locate(adapter, require_lock=True) == (base, "lock")


def test_without_a_lock_the_evidence_is_by_name_and_shape(base: Path, adapter: Path) -> None:
    assert locate(adapter) == (base, "name-and-shape")
    gathered = gather(((None, adapter),), base=None, progress=Silent())
    assert gathered.base.evidence == "name-and-shape"
    write_lock(adapter, read_local_base(base))
    assert gather(((None, adapter),), base=None, progress=Silent()).base.evidence == "lock"


def test_one_adapter_without_a_lock_weakens_the_evidence_for_all(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    write_lock(adapter, read_local_base(base))
    other = write_adapter(tmp_path / "other", base_model_name_or_path=str(base))
    gathered = gather((("a", adapter), ("b", other)), base=None, progress=Silent())
    assert gathered.base.evidence == "name-and-shape"


def test_adapters_of_different_bases_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    twin = write_base(tmp_path / "twin")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (twin / name).write_bytes((base / name).read_bytes())
    other = write_adapter(tmp_path / "other", base_model_name_or_path=str(twin))
    both = (("a", adapter), ("b", other))
    assert gather(both, base=None, progress=Silent()).ref.directory == base
    change_weights(twin)
    with pytest.raises(BaseError, match="different bases") as caught:
        gather(both, base=None, progress=Silent())
    assert caught.value.where == str(other)


def test_the_base_given_comes_before_the_one_in_the_config(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = write_base(tmp_path / "other")
    assert locate(adapter, str(other)) == (other, "name-and-shape")
    write_lock(adapter, read_local_base(base))
    with pytest.raises(BaseMismatchError):
        locate(adapter, str(other))


def test_an_adapter_that_names_no_base_needs_one(adapter: Path) -> None:
    write_adapter(adapter, base_model_name_or_path=None)
    with pytest.raises(BaseError, match="does not say which base") as caught:
        locate(adapter)
    assert "--base" in caught.value.hint


def locate_on_hub(adapter: Path, ref: str | None) -> tuple[str, str, list[str]]:
    """What a client process finds: title, evidence, and the lines said."""
    said: list[str] = []
    found, evidence = locate_base(read_adapter(adapter), ref, say=said.append)
    return found.title, evidence, said


def test_given_base_then_lock_then_config(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    loopback_hub: LoopbackHub,
    client: Callable[..., Client],
) -> None:
    """Three commits of one repository: the old one locked, the middle in the config, a new one."""
    repo = "org/base"
    locked = loopback_hub.seed(repo, base).oid
    grow_tokenizer(base)
    configured = loopback_hub.seed(repo, base).oid
    (base / "tokenizer.json").write_text("{}", encoding="utf-8")
    newest = loopback_hub.seed(repo, base).oid
    write_adapter(adapter, base_model_name_or_path=repo, revision=configured)
    process = client()
    by_shape = "name-and-shape"
    assert process.call(locate_on_hub, adapter, None)[:2] == (f"{repo}@{configured}", by_shape)
    title, evidence, said = process.call(locate_on_hub, adapter, repo)
    assert (title, evidence) == (f"{repo}@{newest}", by_shape)
    assert said[0] == f"base {repo}@main is commit {newest}"
    process.call(stamp, adapter, f"{repo}@{locked}")
    lock = read_lock(adapter)
    assert lock is not None
    assert (lock.repo, lock.commit) == (repo, locked)
    assert process.call(locate_on_hub, adapter, None) == (f"{repo}@{locked}", "lock", [])
    with pytest.raises(BaseMismatchError, match="1 of 4 files") as caught:
        process.call(locate_on_hub, adapter, repo)
    assert "tokenizer.json has 2 bytes, not 24" in caught.value.found
    assert f"{repo}@{locked}" in caught.value.expected


def stamp(adapter: Path, ref: str) -> None:
    stamp_lock(adapter, ref, Silent())


def test_lock_refuses_a_base_that_the_adapter_does_not_fit(base: Path, adapter: Path) -> None:
    write_tensors(adapter / "adapter_model.safetensors", pair(Q_PROJ, width=16, height=16))
    with pytest.raises(RejectedPlanError, match="another width"):
        stamp_lock(adapter, str(base), Silent())
    assert not (adapter / "base.lock.json").exists()


def test_weights_that_changed_on_the_hub_are_told(
    base: Path, adapter: Path, loopback_hub: LoopbackHub, client: Callable[..., Client]
) -> None:
    """Only without a lock: with one, the base is the one trained on."""
    made = read_adapter(adapter).made_at
    loopback_hub.seed("org/base", base, date=made - timedelta(days=2))
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"new!")
    changed = made + timedelta(days=1)
    commit = loopback_hub.seed("org/base", base, date=changed, title="Fix the weights").oid
    process = client()
    _, _, said = process.call(locate_on_hub, adapter, "org/base@main")
    assert said[1:] == [
        f"warning: org/base changed model.safetensors on {changed:%Y-%m-%d} "
        f"(commit {commit[:12]}, 'Fix the weights'), after the adapter was made "
        f"on {made:%Y-%m-%d}"
    ]
    process.call(stamp, adapter, f"org/base@{commit}")
    assert process.call(locate_on_hub, adapter, None)[2] == []
