"""Names from files and arguments: none leads outside of the folder that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packager.errors import LorapackError, UnsafeInputError
from packager.untrusted import check_relative_name, resolve_inside
from tests.faults.world import World, check_failure

OUTSIDE = [
    "../x", "..", ".", "", "/etc/passwd", "a/../../x", "a//b", "a/", "a/./b", "a\0b", "a\nb",
    "a\x1bb", "C:x", "C:/x", r"..\x", r"a\b", "\\\\host\\share", "\ud800", "a/\udcff", "n" * 256,
    "語" * 100, "/".join("a" * 20),
]  # fmt: skip
INSIDE = ["x", "a/b.jinja", "語.txt", "🏴‍☠️/x", "..x", "x..", ".hidden", "a b", "-x", "n" * 255]


@pytest.mark.parametrize("name", OUTSIDE)
def test_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeInputError) as caught:
        check_relative_name(name, where="here")
    str(caught.value).encode("utf-8")
    with pytest.raises(UnsafeInputError):
        resolve_inside(tmp_path, name, where="here")


@pytest.mark.parametrize("name", INSIDE)
def test_plain_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    assert check_relative_name(name, where="here") == name
    assert resolve_inside(tmp_path, name, where="here") == tmp_path / name


def test_links_are_followed_inside_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-2"
    root.mkdir()
    outside.mkdir()
    (root / "file").write_text("x", encoding="utf-8")
    (root / "inner").symlink_to(root / "file")
    (root / "outer").symlink_to(outside / "file")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    assert resolve_inside(root, "inner", where="") == root / "inner"
    assert resolve_inside(root, "loop", where="") == root / "loop"
    for name in ("outer", "folder/file"):
        with pytest.raises(UnsafeInputError):
            resolve_inside(root, name, where="")


def test_snapshot_links_into_its_own_blobs_only(tmp_path: Path) -> None:
    """As the Hub's cache lays it out."""
    repo, other = (tmp_path / f"models--o--{name}" for name in ("ours", "theirs"))
    root = repo / "snapshots" / ("0" * 40)
    root.mkdir(parents=True)
    for place in (repo, other):
        (place / "blobs").mkdir(parents=True, exist_ok=True)
        (place / "blobs" / "digest").write_text("x", encoding="utf-8")
    (root / "ours").symlink_to("../../blobs/digest")
    (root / "theirs").symlink_to("../../../models--o--theirs/blobs/digest")
    assert resolve_inside(root, "ours", where="").read_text(encoding="utf-8") == "x"
    with pytest.raises(UnsafeInputError):
        resolve_inside(root, "theirs", where="")


def test_snapshot_links_into_the_blobs_that_a_whole_cache_shares(tmp_path: Path) -> None:
    """As the Hub's cache lays out what came from Xet storage; the marker tells the store."""
    root = tmp_path / "hub/models--o--ours/snapshots" / ("0" * 40)
    blobs, shared = root.parent.parent / "blobs", tmp_path / "hub/blobs"
    for place in (root, blobs, shared / "ab", tmp_path / "blobs"):
        place.mkdir(parents=True)
    (shared / "ab/abc").write_text("x", encoding="utf-8")
    (tmp_path / "blobs/secret").write_text("y", encoding="utf-8")
    (blobs / "digest").symlink_to("../../blobs/ab/abc")
    (root / "ours").symlink_to("../../blobs/digest")
    (root / "further").symlink_to("../../../../blobs/secret")
    with pytest.raises(UnsafeInputError):
        resolve_inside(root, "ours", where="")
    (shared / ".huggingface-shared-blobs").write_text("1\n", encoding="utf-8")
    assert resolve_inside(root, "ours", where="").read_text(encoding="utf-8") == "x"
    with pytest.raises(UnsafeInputError):
        resolve_inside(root, "further", where="")


@pytest.mark.parametrize("name", ["..", "a\nb", "C:x", "x.", "_", "a b", "n" * 97, "x/y"])
def test_adapter_name_that_is_no_folder_name(world: World, name: str) -> None:
    argv = [f"{name}={part}" if part == str(world.adapter) else part for part in world.release()]
    texts = ("no such adapter folder",) if "/" in name else ("an adapter's name", "NAME=ADAPTER")
    world.fail(argv, *texts)


@pytest.mark.parametrize("name", ["语言 🏴‍☠️", "a'b\"c", "-rf", "%s{{x}}", "n" * 120])
def test_folder_of_any_name_gives_an_adapter_that_stays_inside(world: World, name: str) -> None:
    folder = world.adapter.rename(world.adapter.with_name(name))
    outcome = world.run([str(folder) if p == str(world.adapter) else p for p in world.release()])
    if len(name) > 96:
        check_failure(outcome, "an adapter's name", "NAME=ADAPTER")
        return
    assert outcome.code == 0, outcome.stderr
    assert [path.name for path in world.work.iterdir()] == ["bundle"]
    (merged,) = (world.out / "merged").iterdir()
    assert (merged / "config.json").is_file()


def _file(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["files"][0].update(fields)


def _base(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["base"].update(fields)


def _adapter(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["adapters"][0].update(fields)


def _target(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["targets"][0].update(fields)


MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "file climbs": _file(path="../../../sources/base/config.json"),
    "file is absolute": _file(path="/etc/passwd"),
    "file name with a null": _file(path="a\0b"),
    "file name endless": _file(path="n" * 5000),
    "file name is a number": _file(path=5),
    "file name is a list": _file(path=["a"]),
    "size is true": _file(size=True),
    "size is a float": _file(size=1.0),
    "size is negative": _file(size=-1),
    "digest is short": _file(sha256="0"),
    "digest is null": _file(sha256=None),
    "further field": _file(more=1),
    "file twice": lambda manifest: manifest["files"].append(manifest["files"][0]),
    "files are a mapping": lambda manifest: manifest.update(files={"a": 1}),
    "target climbs": _target(path="../.."),
    "target unknown": _target(target="elsewhere"),
    "target is a list": _target(target=["merged"]),
    "target name is a number": _target(name=1),
    "adapter name climbs": _adapter(name="../../sources"),
    "adapter name is deep": _adapter(name="a/b"),
    "adapter name is null": _adapter(name=None),
    "adapter folder is a number": _adapter(directory=5),
    "adapter file climbs": _adapter(files=[{"path": "../x", "size": 0, "sha256": "0" * 64}]),
    "base folder is a list": _base(directory=[]),
    "base repository is a number": _base(repo=5),
    "gated is text": _base(gated="no"),
    "evidence unknown": _base(evidence="trust me"),
    "base is a list": lambda manifest: manifest.update(base=[]),
    "no base": lambda manifest: manifest.pop("base") and None,
    "dtype unknown": lambda manifest: manifest.update(options={"dtype": "X9"}),
    "options are numbers": lambda manifest: manifest.update(options={"dtype": 1}),
    "tool is text": lambda manifest: manifest.update(tool="lorapack"),
    "another schema": lambda manifest: manifest.update(schema_version=99),
}


def test_hostile_manifests_are_refused(world: World) -> None:
    assert world.run(world.release()).code == 0
    path = world.out / "lorapack.json"
    whole = path.read_text(encoding="utf-8")
    for name, change in MANIFESTS.items():
        manifest = json.loads(whole)
        change(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")
        for level in ("files", "weights"):
            said = world.fail(["verify", str(world.out), "--level", level], "lorapack.json")
            assert "manifest" in said or "schema" in said, name


@pytest.mark.parametrize("folder", ["~nobody-has-this-name", "n" * 5000, "a\0b", "../../etc"])
def test_manifest_may_name_any_folder_as_origin(world: World, folder: str) -> None:
    assert world.run(world.release()).code == 0
    path = world.out / "lorapack.json"
    whole = path.read_text(encoding="utf-8")
    for key in ("base", "adapters"):
        manifest = json.loads(whole)
        record = manifest[key] if key == "base" else manifest[key][0]
        record["directory"] = folder
        path.write_text(json.dumps(manifest), encoding="utf-8")
        outcome = world.run(["verify", str(world.out), "--level", "weights"])
        if key == "base":
            check_failure(outcome)
        else:  # the bundle's own copy is as good
            assert outcome.code == 0, outcome.stderr


def test_links_in_a_bundle_are_no_content(world: World) -> None:
    assert world.run(world.release()).code == 0
    (merged,) = (world.out / "merged").iterdir()
    outside = world.root / "outside"
    merged.rename(outside)
    merged.symlink_to(outside)
    outcome = world.run(["verify", str(world.out), "--level", "files"])
    assert outcome.code == 1
    assert "is not in the manifest" in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr


LOCKS: dict[str, dict[str, Any]] = {
    "file climbs": {"files": [{"path": "../x", "size": 0, "sha256": "0" * 64}]},
    "file is absolute": {"files": [{"path": "/etc/passwd", "size": 0, "sha256": "0" * 64}]},
    "size is true": {"files": [{"path": "x", "size": True, "sha256": "0" * 64}]},
    "repository is a folder": {"repo": "../../etc", "commit": "0" * 40},
    "repository is a number": {"repo": 5},
    "commit is a branch": {"repo": "org/name", "commit": "main"},
    "commit climbs": {"repo": "org/name", "commit": "../../../../etc"},
    "further field": {"more": 1},
    "another schema": {"schema_version": 99},
    "digest of something else": {"digest": "sha256:" + "0" * 64},
}


def test_hostile_locks_are_refused(world: World) -> None:
    assert world.run(["lock", str(world.adapter), "--base", str(world.base)]).code == 0
    path = world.adapter / "base.lock.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for name, fields in LOCKS.items():
        path.write_text(json.dumps({**whole, **fields}), encoding="utf-8")
        for argv in (world.release(), ["inspect", str(world.adapter)]):
            said = world.fail(argv, "base.lock.json", "hint: ")
            assert "lock is damaged" in said or "leads outside" in said, name


def test_every_refusal_is_a_known_failure(tmp_path: Path) -> None:
    for name in OUTSIDE:
        with pytest.raises(LorapackError) as caught:
            check_relative_name(name, where=str(tmp_path))
        assert caught.value.hint
