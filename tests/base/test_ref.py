"""`REF` → the exact base: a folder by content, a Hub cache's snapshot by repository and commit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from packager.base import resolve_base
from packager.base.ref import read_local_base
from packager.digest import content_digest
from packager.errors import BaseError
from tests.folders import BASE_SHAPES, write_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def quiet(_line: str) -> None:
    raise AssertionError("a folder has nothing to say")


def test_a_folder_is_known_by_the_content_of_what_makes_the_model(tmp_path: Path) -> None:
    base = write_base(tmp_path / "模型 🏴‍☠️")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (base / name).write_text("{}", encoding="utf-8")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/工具.jinja").write_text("x", encoding="utf-8")
    for name in ("notes.txt", "training_args.bin", "optimizer.pt"):
        (base / name).write_text("x", encoding="utf-8")
    ref = resolve_base(str(base), say=quiet)
    assert [entry.path for entry in ref.files] == [
        "additional_chat_templates/工具.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (ref.repo, ref.commit, ref.title) == (None, None, "模型 🏴‍☠️")
    assert ref.digest == content_digest(ref.files)
    (base / "notes.txt").write_text("other", encoding="utf-8")
    assert read_local_base(base).digest == ref.digest
    (base / "chat_template.jinja").write_text("other", encoding="utf-8")
    assert read_local_base(base).digest != ref.digest


def test_the_folder_is_absolute_and_the_digest_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    ref = resolve_base("base", say=quiet)
    assert ref.directory == base
    assert ref.digest == read_local_base(base).digest


def cache_snapshot(tmp_path: Path, repo_folder: str, commit: str) -> Path:
    """Lays a base out as a Hub cache does: a snapshot of links to blobs."""
    blobs = tmp_path / repo_folder / "blobs"
    snapshot = tmp_path / repo_folder / "snapshots" / commit
    whole = write_base(tmp_path / "whole")
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(whole.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / f"{number:064x}", snapshot))
    return snapshot


def test_a_snapshot_of_a_hub_cache_tells_repository_and_commit(tmp_path: Path) -> None:
    snapshot = cache_snapshot(tmp_path, "models--HuggingFaceTB--SmolLM2-135M", COMMIT)
    ref = resolve_base(str(snapshot), say=quiet)
    assert (ref.repo, ref.commit) == ("HuggingFaceTB/SmolLM2-135M", COMMIT)
    assert ref.title == f"HuggingFaceTB/SmolLM2-135M@{COMMIT}"
    assert {entry.path for entry in ref.files} == {"config.json", "model.safetensors"}
    assert ref.digest == read_local_base(write_base(tmp_path / "again")).digest


@pytest.mark.parametrize(
    ("repo_folder", "commit"),
    [
        ("models--org--name", "main"),
        ("models--org--name", COMMIT[:-1]),
        ("datasets--org--name", COMMIT),
        ("models--name", COMMIT),
        ("elsewhere", COMMIT),
    ],
)
def test_another_folder_tells_neither(tmp_path: Path, repo_folder: str, commit: str) -> None:
    ref = read_local_base(cache_snapshot(tmp_path, repo_folder, commit))
    assert (ref.repo, ref.commit) == (None, None)


@pytest.mark.parametrize(
    "text", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "org/name@", "一/二", ""]
)
def test_what_names_no_base_is_refused(text: str) -> None:
    with pytest.raises(BaseError, match="no such base") as caught:
        resolve_base(text, say=quiet)
    assert caught.value.where == text
    assert "--base" in caught.value.hint


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path, (BASE_SHAPES,))
    (base / "model.safetensors").unlink()
    with pytest.raises(BaseError, match="missing"):
        resolve_base(str(base), say=quiet)
