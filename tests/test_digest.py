"""Content digests, and that what is remembered of a file is forgotten when the file changes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.digest import content_digest, differing_files, hash_file, hash_files
from packager.errors import InputError
from packager.manifest import FileEntry


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/lorapack/digests.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files, old enough to be remembered."""
    folder = tmp_path / "文件夹"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"one")
    (folder / "b 🏴‍☠️.bin").write_bytes(b"two" * 3_000_000)
    time.sleep(0.15)
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


NAMES = ["b 🏴‍☠️.bin", "a.txt"]


def read_count(folder: Path, names: list[str]) -> tuple[tuple[FileEntry, ...], int]:
    """Hashes and tells how many bytes were read for it, by the kernel's own count."""
    before = _characters_read()
    entries = hash_files(folder, names)
    return entries, _characters_read() - before


def _characters_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_files_are_hashed_in_name_order(folder: Path) -> None:
    told: list[int] = []
    assert hash_files(folder, NAMES, told.append) == (
        FileEntry("a.txt", 3, sha256(b"one")),
        FileEntry("b 🏴‍☠️.bin", 9_000_000, sha256(b"two" * 3_000_000)),
    )
    assert sum(told) == 9_000_003


def test_an_unchanged_file_is_not_read_again(folder: Path, cache: Path) -> None:
    first, read = read_count(folder, NAMES)
    assert read > 9_000_000
    told: list[int] = []
    second, read = read_count(folder, NAMES)
    assert second == first
    assert read < 100_000
    hash_files(folder, NAMES, told.append)
    assert sum(told) == 9_000_003
    assert len(json.loads(cache.read_text(encoding="utf-8"))) == 2


def test_a_changed_file_is_hashed_again_even_with_its_old_size_and_time(folder: Path) -> None:
    path = folder / "a.txt"
    hash_files(folder, NAMES)
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"ONE")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert hash_files(folder, ["a.txt"])[0].sha256 == sha256(b"ONE")


def test_a_file_put_in_the_place_of_another_is_hashed_again(folder: Path) -> None:
    hash_files(folder, NAMES)
    other = folder / "other"
    other.write_bytes(b"six")
    other.replace(folder / "a.txt")
    assert hash_files(folder, ["a.txt"])[0].sha256 == sha256(b"six")


def test_a_file_written_just_now_is_not_remembered(folder: Path, cache: Path) -> None:
    (folder / "a.txt").write_bytes(b"new")
    hash_files(folder, ["a.txt"])
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": {"b": 1}}', "\x00\xff"])
def test_a_damaged_memory_only_costs_time(folder: Path, cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text, encoding="latin-1")
    assert hash_files(folder, ["a.txt"])[0].sha256 == sha256(b"one")
    assert len(json.loads(cache.read_text(encoding="utf-8"))) >= 1


def test_a_memory_that_cannot_be_kept_is_no_failure(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hash_files(folder, ["a.txt"])[0].sha256 == sha256(b"one")


def test_a_missing_file_is_named(folder: Path) -> None:
    for call in (lambda: hash_files(folder, ["无.txt"]), lambda: hash_file(folder / "无.txt")):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.where == str(folder / "无.txt")


entries = st.builds(
    FileEntry,
    path=st.text(min_size=1, max_size=12),
    size=st.integers(0, 1 << 40),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
listings = st.lists(entries, max_size=5, unique_by=lambda entry: entry.path)


@given(listings, st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order(listing: list[FileEntry], random: object) -> None:
    shuffled = sorted(listing, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert content_digest(shuffled) == content_digest(listing)


@given(listings, listings)
def test_two_listings_have_one_digest_only_if_no_file_differs(
    left: list[FileEntry], right: list[FileEntry]
) -> None:
    differing = differing_files(left, right)
    assert (content_digest(left) == content_digest(right)) is (not differing)
    for path, (wanted, found) in differing.items():
        assert wanted != found
        assert wanted is None or wanted in left
        assert found is None or found in right
        assert path in {entry.path for entry in [*left, *right]}
