"""Publishing into a store on the disk: the same bytes as Go's encoder, and nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from packager.errors import BundleError, InputError, OllamaError, OutputError
from packager.modelfile import Modelfile
from packager.publish.store import publish_store
from tests.publish_ollama.bundle import (
    FULL,
    NAME,
    PLAIN,
    gguf_of,
    seal,
    write_bundle,
    write_gguf,
    write_target,
)
from tests.publish_ollama.go import ask_oracle

LIBRARY = Path("manifests/registry.ollama.ai/library")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def oracle_store(program: Path, bundle: Path, store: Path, places: dict[str, str]) -> Path:
    """Lets Go make the store: place of a manifest → quant of its model."""
    orders = []
    for place, quant in places.items():
        path = gguf_of(bundle, quant)
        reader = gguf.GGUFReader(path)
        orders.append(
            {
                "request": str(path.parent / f"create.{quant}.json"),
                "gguf": str(path),
                "store": str(store),
                "place": place,
                "family": reader.fields["general.architecture"].contents(),
                "file_type": "unknown" if quant == "F32" else quant,
                "parameters": sum(int(tensor.n_elements) for tensor in reader.tensors),
            }
        )
    ask_oracle(program, "", orders)
    return store


@pytest.mark.parametrize("modelfile", [FULL, PLAIN, replace(FULL, licenses=(), messages=())])
def test_a_store_has_the_bytes_that_go_writes(
    go_oracle: Path, tmp_path: Path, modelfile: Modelfile
) -> None:
    bundle = write_bundle(tmp_path / "bundle", quants=("Q4_K_M", "F32"), modelfile=modelfile)
    publish_store(bundle, tmp_path / "store")
    prefix = f"registry.ollama.ai/library/{NAME}/"
    places = {prefix + "Q4_K_M": "Q4_K_M", prefix + "F32": "F32", prefix + "latest": "Q4_K_M"}
    expected = oracle_store(go_oracle, bundle, tmp_path / "oracle", places)
    assert tree(tmp_path / "store") == tree(expected)


def test_everybody_may_read_the_store_whatever_the_umask(bundle: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        publish_store(bundle, tmp_path / "store")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    assert len(files) == 8 + 2 + 3  # what both quants share, their own two, and the manifests


def test_what_is_reported_is_what_is_there(bundle: Path, tmp_path: Path) -> None:
    made = publish_store(bundle, tmp_path / "store")
    assert [model.name for model in made] == [
        f"{NAME}:{tag}" for tag in ("Q4_K_M", "Q8_0", "latest")
    ]
    assert [model.quant for model in made] == ["Q4_K_M", "Q8_0", "Q4_K_M"]
    for model in made:
        data = Path(model.manifest).read_bytes()
        assert model.id == hashlib.sha256(data).hexdigest()
        document = json.loads(data)
        listed = [*document["layers"], document["config"]]
        assert [blob.digest for blob in model.blobs] == [item["digest"] for item in listed]
        for blob in model.blobs:
            stored = tmp_path / "store/blobs" / blob.digest.replace(":", "-")
            assert stored.stat().st_size == blob.size
            assert f"sha256:{hashlib.sha256(stored.read_bytes()).hexdigest()}" == blob.digest
    assert made[0].written_bytes == sum(blob.size for blob in made[0].blobs)
    assert made[2].written_bytes == 0


def test_a_blob_is_a_copy_that_the_bundle_cannot_change(bundle: Path, tmp_path: Path) -> None:
    path = gguf_of(bundle)
    before = path.read_bytes()
    (made, *_) = publish_store(bundle, tmp_path / "store")
    with path.open("r+b") as file:
        file.write(b"XXXX")
    stored = tmp_path / "store/blobs" / made.blobs[0].digest.replace(":", "-")
    assert stored.read_bytes() == before


def test_again_writes_nothing_and_touches_the_blobs(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish_store(bundle, store)
    for path in (store / "blobs").iterdir():
        os.utime(path, (1, 1))
    nodes = {path: path.stat().st_ino for path in store.rglob("*")}
    made = publish_store(bundle, store)
    assert {path: path.stat().st_ino for path in store.rglob("*")} == nodes
    assert {model.state for model in made} == {"there"}
    assert sum(model.written_bytes for model in made) == 0
    # Ollama removes blobs older than an hour that no manifest names.
    assert all(path.stat().st_mtime > 1 for path in (store / "blobs").iterdir())


@pytest.mark.parametrize("damage", ["bit", "short", "empty"])
def test_a_blob_with_wrong_content_is_written_again(
    bundle: Path, tmp_path: Path, damage: str
) -> None:
    store = tmp_path / "store"
    (first, *_) = publish_store(bundle, store)
    path = store / "blobs" / first.blobs[0].digest.replace(":", "-")
    good = path.read_bytes()
    bad = {"bit": bytes([good[0] ^ 1]) + good[1:], "short": good[:-1], "empty": b""}[damage]
    path.write_bytes(bad)
    (second, *_) = publish_store(bundle, store)
    assert path.read_bytes() == good
    assert [blob.state for blob in second.blobs] == ["replaced", *["there"] * 7]


def test_a_second_release_replaces_the_manifests_and_removes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    publish_store(write_bundle(tmp_path / "first"), store)
    before = tree(store)
    write_target(tmp_path / "second", seed=5)
    made = publish_store(seal(tmp_path / "second"), store)
    after = tree(store)
    assert {model.state for model in made} == {"replaced"}
    assert {name: after[name] for name in before if name.startswith("blobs/")} == {
        name: data for name, data in before.items() if name.startswith("blobs/")
    }
    assert len(after) == len(before) + 2 + 0  # two GGUFs; the configurations are the same


def test_a_dry_run_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "deep/store"
    draft = publish_store(bundle, store, dry_run=True)
    assert not (tmp_path / "deep").exists()
    made = publish_store(bundle, store)
    assert draft == made
    assert publish_store(bundle, store, dry_run=True) == publish_store(bundle, store)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ann/Ahoy", ["ann/Ahoy:Q4_K_M", "ann/Ahoy:Q8_0", "ann/Ahoy:latest"]),
        ("ahoy:q8_0", ["ahoy:q8_0"]),
        ("ahoy:v2", ["ahoy:v2"]),
        ("example.org:8080/ann/ahoy:v2", ["example.org:8080/ann/ahoy:v2"]),
    ],
)
def test_names_and_tags(bundle: Path, tmp_path: Path, name: str, expected: list[str]) -> None:
    made = publish_store(bundle, tmp_path / "store", name)
    assert [model.name for model in made] == expected
    assert made[0].quant == ("Q8_0" if name.endswith("q8_0") else "Q4_K_M")
    assert len(list((tmp_path / "store/manifests").glob("*/*/*/*"))) == len(expected)


def test_several_adapters_become_several_models(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", ("pirate", "poet"), quants=("Q8_0",))
    plain = publish_store(bundle, tmp_path / "plain")
    named = publish_store(bundle, tmp_path / "named", "ann/m")
    assert [model.name for model in plain] == [
        "pirate:Q8_0", "pirate:latest", "poet:Q8_0", "poet:latest",
    ]  # fmt: skip
    assert [model.name for model in named][::2] == ["ann/m-pirate:Q8_0", "ann/m-poet:Q8_0"]
    assert len({model.blobs[0].digest for model in plain}) == 2


def test_a_model_that_is_there_in_other_capitals_is_the_one_meant(
    bundle: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    publish_store(bundle, store, "Pirate:Latest")
    made = publish_store(bundle, store, "pirate")
    assert {path.name for path in (store / LIBRARY).iterdir()} == {"Pirate"}
    assert {path.name for path in (store / LIBRARY / "Pirate").iterdir()} == {
        "Latest", "Q4_K_M", "Q8_0",
    }  # fmt: skip
    assert made[-1].state == "there"


def test_the_default_quant_is_the_one_of_create_json(tmp_path: Path) -> None:
    write_target(tmp_path / "bundle", quants=("Q8_0", "Q4_K_M"))
    made = publish_store(seal(tmp_path / "bundle"), tmp_path / "store")
    assert [(model.name, model.quant) for model in made] == [
        ("pirate:Q8_0", "Q8_0"),
        ("pirate:Q4_K_M", "Q4_K_M"),
        ("pirate:latest", "Q8_0"),
    ]


def test_a_changed_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    with gguf_of(bundle, "Q8_0").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(BundleError, match=r"not what its manifest says.*Q8_0"):
        publish_store(bundle, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_bundle_without_ollama_is_refused(tmp_path: Path) -> None:
    bundle = seal(write_bundle(tmp_path / "bundle"), ())
    with pytest.raises(OllamaError, match="nothing in this bundle is for Ollama") as caught:
        publish_store(bundle, tmp_path / "store")
    assert caught.value.hint == "release again with --target ollama"


@pytest.mark.parametrize(
    ("removed", "expected"),
    [("create.json", "create.json"), ("create.Q4_K_M.json", "create.Q4_K_M.json")],
)
def test_a_missing_request_is_named(
    bundle: Path, tmp_path: Path, removed: str, expected: str
) -> None:
    (bundle / "ollama" / NAME / removed).unlink()
    with pytest.raises(BundleError, match="file of the ollama target is missing") as caught:
        publish_store(seal(bundle), tmp_path / "store")
    assert caught.value.where.endswith(expected)


def test_a_request_for_another_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "ollama" / NAME / "create.Q8_0.json"
    path.write_text(path.read_text(encoding="utf-8").replace("sha256:", "sha256:0", 1)[:-1])
    text = path.read_text(encoding="utf-8")
    digest = text.split("sha256:")[1][:65]
    path.write_text(text.replace(digest, digest[:64]), encoding="utf-8")
    with pytest.raises(BundleError, match="names another file than the bundle has"):
        publish_store(seal(bundle), tmp_path / "store")


@pytest.mark.parametrize(
    ("gguf_options", "expected"),
    [
        ({"kind": "adapter"}, "this GGUF is no model"),
        ({"splits": 3}, "in several files"),
        ({"architecture": "gemma4"}, "only a running Ollama"),
    ],
)
def test_what_only_a_running_ollama_can_make_is_refused(
    tmp_path: Path, gguf_options: dict[str, object], expected: str
) -> None:
    bundle = tmp_path / "bundle"
    write_gguf(gguf_of(bundle), **gguf_options)  # type: ignore[arg-type]
    write_target(bundle)
    with pytest.raises(OllamaError, match=expected) as caught:
        publish_store(seal(bundle), tmp_path / "store")
    assert caught.value.hint
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16, b"NOPE" * 9])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    bundle = tmp_path / "bundle"
    gguf_of(bundle).parent.mkdir(parents=True)
    gguf_of(bundle).write_bytes(content)
    write_target(bundle)
    with pytest.raises(InputError, match="not a GGUF that Ollama can read"):
        publish_store(seal(bundle), tmp_path / "store")


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "a:", "-a", ".a", "a b", "a/b/c/d", "a.b/c", "..", "a:b:c", "é",
     "x" * 81, "a:" + "t" * 81, "http://h/a/b", "a/..", "a\n", "a@sha256"],
)  # fmt: skip
def test_names_that_ollama_does_not_take(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(OllamaError, match="Ollama does not take this name"):
        publish_store(bundle, tmp_path / "store", name)
    assert not (tmp_path / "store").exists()


def test_the_folder_above_a_store_is_recognised(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".ollama/models/blobs").mkdir(parents=True)
    with pytest.raises(OllamaError, match="not a store of Ollama") as caught:
        publish_store(bundle, tmp_path / ".ollama")
    assert caught.value.hint == f"give {tmp_path / '.ollama/models'}"
    publish_store(bundle, tmp_path / ".ollama/models")


@pytest.mark.parametrize("kind", ["file", "other folder"])
def test_what_is_not_a_store_is_left_alone(bundle: Path, tmp_path: Path, kind: str) -> None:
    store = tmp_path / "store"
    if kind == "file":
        store.write_text("mine")
    else:
        store.mkdir()
        (store / "letters.txt").write_text("mine")
    with pytest.raises(OllamaError, match="not a store of Ollama"):
        publish_store(bundle, store)
    assert [path.name for path in tmp_path.rglob("*") if path.is_relative_to(store)] in (
        ["store"], ["store", "letters.txt"],
    )  # fmt: skip


def test_a_store_whose_blobs_lie_elsewhere(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "big disk").mkdir()
    (store / "blobs").symlink_to(tmp_path / "big disk")
    publish_store(bundle, store)
    assert len(list((tmp_path / "big disk").iterdir())) == 10


def test_a_store_without_room_is_left_as_it_is(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage())
    with pytest.raises(OutputError, match="no room for the model"):
        publish_store(bundle, tmp_path / "store")
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


class _Usage:
    free = 1
