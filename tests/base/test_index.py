"""A base as an index: what its files hold against what its index says, and what is tied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from packager.base import read_base
from packager.base.index import weight_file_names
from packager.errors import BaseError, InputError, UnsafeInputError
from tests.folders import BASE_SHAPES, write_base, write_index, write_tensors
from tests.models import make_llama

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Break = Callable[[Path], None]


def split() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    names = list(BASE_SHAPES)
    return (
        {name: BASE_SHAPES[name] for name in names[:2]},
        {name: BASE_SHAPES[name] for name in names[2:]},
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "60KB"])
def test_every_tensor_lies_where_safetensors_reads_it(
    tmp_path: Path, tied: bool, max_shard_size: str
) -> None:
    base = make_llama(tmp_path / "底座", tied=tied, max_shard_size=max_shard_size)
    index = read_base(base)
    assert (len(index.files) > 1) is (max_shard_size == "60KB")
    seen = set()
    for file in index.files:
        with safe_open(file.path, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                seen.add(name)
                ref, tensor = index.tensors[name], opened.get_tensor(name)
                assert (ref.file, ref.shape) == (file.path, tuple(tensor.shape))
                data = file.path.read_bytes()[ref.offset : ref.offset + ref.nbytes]
                assert data == tensor.view(torch.uint8).numpy().tobytes()
    assert seen == set(index.tensors)
    assert index.dtypes == ("BF16",)
    assert index.architecture == "LlamaForCausalLM"
    assert index.ties_embeddings is tied
    assert (index.head is None) is tied
    assert index.embedding is not None
    assert index.embedding.name == "model.embed_tokens.weight"
    assert index.weights_bytes == 2 * index.parameter_count


def test_the_fingerprint_depends_on_names_types_and_shapes_only(tmp_path: Path) -> None:
    one = read_base(write_base(tmp_path / "one")).fingerprint
    assert read_base(write_base(tmp_path / "two", split())).fingerprint == one
    others = [
        write_base(tmp_path / "half", dtype=np.float16),
        write_base(tmp_path / "name", ({**BASE_SHAPES, "more": (1,)},)),
        write_base(tmp_path / "shape", ({**BASE_SHAPES, "model.norm.weight": (4, 2)},)),
    ]
    found = {read_base(other).fingerprint for other in others}
    assert len(found | {one}) == 4


@pytest.mark.parametrize(
    ("config", "head", "tied"),
    [
        ({"tie_word_embeddings": True}, False, True),
        ({"tie_word_embeddings": True}, True, True),
        ({"tie_word_embeddings": False}, True, False),
        ({"tie_word_embeddings": False}, False, False),
        ({"tie_word_embeddings": None}, False, True),
        ({"tie_word_embeddings": None}, True, False),
        ({"tie_word_embeddings": None, "text_config": {"tie_word_embeddings": True}}, True, True),
        ({"tie_word_embeddings": None, "text_config": {"vocab_size": 3}}, True, False),
    ],
)
def test_whether_the_head_is_tied(
    tmp_path: Path, config: dict[str, Any], head: bool, tied: bool
) -> None:
    shapes = {**BASE_SHAPES, **({"lm_head.weight": (16, 8)} if head else {})}
    assert read_base(write_base(tmp_path, (shapes,), **config)).ties_embeddings is tied


def a_missing_shard(base: Path) -> None:
    (base / SECOND).unlink()


def an_index_that_names_another_file(base: Path) -> None:
    index = json.loads((base / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"]["model.norm.weight"] = "model-00003-of-00003.safetensors"
    write_index(base, index["weight_map"])


def a_tensor_in_two_shards(base: Path) -> None:
    write_tensors(base / SECOND, {**split()[1], "model.embed_tokens.weight": (16, 8)})


def a_tensor_in_another_shard(base: Path) -> None:
    first, second = split()
    second = {**second}
    moved = second.popitem()
    write_tensors(base / FIRST, {**first, moved[0]: moved[1]})
    write_tensors(base / SECOND, second)


def a_tensor_in_no_shard(base: Path) -> None:
    index = json.loads((base / "model.safetensors.index.json").read_text(encoding="utf-8"))
    write_index(base, {**index["weight_map"], "model.layers.9.weight": FIRST})


@pytest.mark.parametrize(
    ("damage", "what", "named"),
    [
        (a_missing_shard, "a weights file of the base is missing", SECOND),
        (an_index_that_names_another_file, "a weights file of the base is missing", "00003-of"),
        (a_tensor_in_two_shards, "stands in two shards", "model.embed_tokens.weight"),
        (a_tensor_in_another_shard, "not where the index says", "model.norm.weight"),
        (a_tensor_in_no_shard, "not where the index says", "model.layers.9.weight"),
    ],
)
def test_shards_that_contradict_the_index_are_refused(
    tmp_path: Path, damage: Break, what: str, named: str
) -> None:
    base = write_base(tmp_path, split())
    read_base(base)
    damage(base)
    with pytest.raises(BaseError) as caught:
        read_base(base)
    assert what in str(caught.value)
    assert named in str(caught.value)
    assert caught.value.hint


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path, split())
    (base / SECOND).write_bytes((base / SECOND).read_bytes()[:-4])
    with pytest.raises(InputError, match="damaged") as caught:
        read_base(base)
    assert caught.value.where == str(base / SECOND)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "", "a\\b", "C:x"]
)
def test_an_index_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    base = write_base(tmp_path / "base", split())
    write_index(base, {"model.norm.weight": name})
    with pytest.raises(UnsafeInputError, match="outside"):
        read_base(base)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, "x"])
def test_a_damaged_index_is_refused(tmp_path: Path, weight_map: Any) -> None:
    base = write_base(tmp_path, split())
    text = json.dumps({"weight_map": weight_map})
    (base / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="weights index is damaged"):
        read_base(base)


@pytest.mark.parametrize(
    "names",
    [
        ("pytorch_model.bin",),
        ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        ("consolidated.00.pth",),
        ("model.pt",),
    ],
)
def test_a_base_of_pickles_is_refused_with_the_way_to_convert_it(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    base = write_base(tmp_path)
    (base / "model.safetensors").unlink()
    for name in names:
        torch.save({"a": torch.zeros(1)}, base / name)
    with pytest.raises(UnsafeInputError, match="pickle") as caught:
        read_base(base)
    assert caught.value.where == str(base / names[0])
    assert "safe_serialization=True" in caught.value.hint


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path, split())
    torch.save({"a": torch.zeros(1)}, base / "pytorch_model.bin")
    write_index(base, {"a": "pytorch_model.bin"})
    with pytest.raises(UnsafeInputError, match="pickle"):
        read_base(base)


def test_a_folder_that_is_no_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no such base folder") as caught:
        read_base(tmp_path / "nowhere")
    assert "--base" in caught.value.hint
    with pytest.raises(InputError, match="missing"):
        read_base(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BaseError, match="weights file of the base is missing"):
        weight_file_names(tmp_path)
