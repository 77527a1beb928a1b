"""One pass from base + adapter to files; each is what llama-quantize makes of the float32 one."""

from __future__ import annotations

import hashlib
import math
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import AdapterError, InputError, OutputError
from packager.gguf.imatrix import fitting_weights, imatrix_keys, read_imatrix
from packager.gguf.layout import GgufFile, plan_files
from packager.gguf.mixture import QUANTS, Quant
from packager.gguf.value import GgufModel, GgufTensor
from packager.manifest import FileEntry
from packager.progress import Silent
from packager.quantise import Importance, write_gguf
from tests.gguf import llama_tools
from tests.gguf.geometry import GEOMETRIES, Geometry
from tests.gguf.importance import write_gguf_imatrix, write_old_imatrix
from tests.sinks.weights import SCALE, World, read_world, write_world

SMALL = Geometry(layers=3, hidden=256, inner=512, heads=4, key_heads=1)
EXPERTS = replace(SMALL, layers=1, inner=256, experts=8)


def write(
    folder: Path,
    world: World,
    model: GgufModel,
    files: tuple[GgufFile, ...],
    importance: Importance | None = None,
    threads: int = 2,
) -> tuple[FileEntry, ...]:
    return write_gguf(
        folder, model, files, world.sources,
        threads=threads, progress=Silent(), importance=importance,
    )  # fmt: skip


class Counted(Silent):
    """Adds up what it is told."""

    total = 0

    def advance(self, count: int) -> None:
        self.total += count


def plan_each(model: GgufModel, quants: tuple[Quant, ...]) -> tuple[GgufFile, ...]:
    return tuple(file for quant in quants for file in plan_files(model, quant, f"m-{quant}"))


@pytest.mark.parametrize(
    "geometry",
    [SMALL, EXPERTS, replace(GEOMETRIES["llama of uneven rows"], layers=2),
     replace(GEOMETRIES["llama of odd rows"], layers=2), replace(GEOMETRIES["gpt2"], layers=1)],
    ids=["dense", "experts", "uneven", "odd", "gpt2"],
)  # fmt: skip
def test_whole_files_are_those_of_llama_quantize(tmp_path: Path, geometry: Geometry) -> None:
    model = geometry.model
    world = write_world(tmp_path, model)
    files = plan_each(model, QUANTS)
    entries = write(tmp_path, world, model, files)
    others = [quant for quant in QUANTS if quant != "F32"]
    llama_tools.quantize(
        *([tmp_path / "m-F32.gguf", tmp_path / f"theirs-{quant}.gguf", quant] for quant in others)
    )
    assert [entry.path for entry in entries] == [file.path for file in files]
    for file, entry in zip(files, entries, strict=True):
        data = (tmp_path / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, entry.sha256)
        if file.quant != "F32":
            assert data == (tmp_path / f"theirs-{file.quant}.gguf").read_bytes(), file.quant


@pytest.mark.parametrize("write_imatrix", [write_gguf_imatrix, write_old_imatrix])
@pytest.mark.parametrize("geometry", [SMALL, EXPERTS], ids=["dense", "experts"])
def test_an_importance_matrix_weighs_as_in_llama_quantize(
    tmp_path: Path, geometry: Geometry, write_imatrix: Callable[[Path, GgufModel], None]
) -> None:
    model = geometry.model
    world = write_world(tmp_path, model)
    write_imatrix(tmp_path / "i.gguf", model)
    imatrix = read_imatrix(tmp_path / "i.gguf")
    quants: tuple[Quant, ...] = ("Q4_K_M", "Q6_K", "IQ4_XS", "Q4_0", "Q8_0")
    keys = imatrix_keys(imatrix)
    files = tuple(
        file
        for quant in quants
        for file in plan_files(model, quant, f"m-{quant}", imatrix_keys=keys)
    )
    write(tmp_path, world, model, plan_files(model, "F32", "source"))
    write(tmp_path, world, model, files, fitting_weights(imatrix, model))
    llama_tools.quantize(
        *(
            ["--imatrix", "i.gguf", "source.gguf", f"theirs-{quant}.gguf", quant]
            for quant in quants
        ),
        folder=tmp_path,
    )
    for quant in quants:
        ours, theirs = (tmp_path / f"{name}-{quant}.gguf" for name in ("m", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes(), quant


def test_parts_are_those_of_llama_gguf_split(tmp_path: Path) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    parts = plan_files(model, "BF16", "part", max_bytes=1_000_000)
    write(tmp_path, world, model, plan_files(model, "BF16", "whole"))
    entries = write(tmp_path, world, model, parts)
    llama_tools.split(
        "--split", "--split-max-size", "1M", tmp_path / "whole.gguf", tmp_path / "theirs"
    )
    assert len(parts) > 2
    assert [entry.path for entry in entries] == [
        f"part-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)
    ]
    for entry in entries:
        theirs = tmp_path / entry.path.replace("part", "theirs")
        assert (tmp_path / entry.path).read_bytes() == theirs.read_bytes()
    assert len(list(tmp_path.glob("theirs-*"))) == len(parts)


def test_a_tensor_larger_than_a_part_gets_its_own() -> None:
    parts = plan_files(SMALL.model, "F32", "part", max_bytes=1000)
    assert len(parts) == len(SMALL.model.tensors)


def test_merged_values_are_base_plus_update(tmp_path: Path) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    write(tmp_path, world, model, plan_each(model, ("F32",)))
    base, factors = load_file(world.base), load_file(world.adapter)
    for tensor in gguf.GGUFReader(tmp_path / "m-F32.gguf").tensors:
        wanted = base[tensor.name].double()
        if f"{tensor.name}.a" in factors:
            lora_a, lora_b = (factors[f"{tensor.name}.{half}"].double() for half in "ab")
            wanted = wanted + SCALE * lora_b @ lora_a
        found = torch.from_numpy(np.array(tensor.data)).view(wanted.shape)
        assert (found.double() - wanted).abs().max() <= 2e-7


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    model = EXPERTS.model
    world = write_world(tmp_path, model)
    hashes = []
    for count in (2, threads):
        folder = tmp_path / str(count)
        folder.mkdir()
        entries = write(folder, world, model, plan_each(model, ("Q4_K_M",)), threads=count)
        hashes.append([entry.sha256 for entry in entries])
    assert hashes[0] == hashes[1]


def test_progress_comes_to_the_size_of_all_files(tmp_path: Path) -> None:
    model = SMALL.model
    world, progress = write_world(tmp_path, model), Counted()
    files = (
        *plan_each(model, ("Q4_K_M", "Q4_K_S")),
        *plan_files(model, "Q8_0", "part", max_bytes=500_000),
    )
    write_gguf(tmp_path, model, files, world.sources, threads=2, progress=progress)
    assert progress.total == sum((tmp_path / file.path).stat().st_size for file in files)


def test_a_limit_on_files_is_an_output_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    parts = plan_files(model, "F32", "m", max_bytes=525_000)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Only a later part is larger, so that others are complete by then.
    limit = max(file.size for file in parts) - 1
    assert parts[0].size <= limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match="the output cannot be written") as caught:
            write(tmp_path, world, model, parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in caught.value.hint
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_names_its_tensor(tmp_path: Path, value: float) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    tensors = load_file(world.base)
    tensors["blk.1.ffn_up.weight"][300, 7] = value
    save_file(tensors, world.base)
    with pytest.raises(AdapterError, match=r"blk\.1\.ffn_up\.weight.* NaN or infinity") as caught:
        write(tmp_path, read_world(tmp_path), model, plan_each(model, ("Q4_K_M", "Q8_0")))
    assert caught.value.where == str(world.base)


def test_a_value_too_large_for_a_type_names_tensor_and_type(tmp_path: Path) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    tensors = load_file(world.base)
    tensors["output.weight"][1, 1] = 2.0**30
    save_file(tensors, world.base)
    world = read_world(tmp_path)
    with pytest.raises(AdapterError, match=r"output\.weight' are too large for F16") as caught:
        write(tmp_path, world, model, plan_each(model, ("F16",)))
    assert caught.value.found == "1.074e+09"
    write(tmp_path, world, model, plan_each(model, ("BF16",)))


def test_a_base_cut_short_is_an_input_error(tmp_path: Path) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    with world.base.open("r+b") as file:
        file.truncate(world.base.stat().st_size - 5000)
    with pytest.raises(InputError, match="the file ends within tensor"):
        write(tmp_path, world, model, plan_each(model, ("Q8_0",)))


def test_an_output_in_the_way_is_left_alone(tmp_path: Path) -> None:
    model = SMALL.model
    world = write_world(tmp_path, model)
    (tmp_path / "m-Q8_0.gguf").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path, world, model, plan_each(model, ("Q4_K_M", "Q8_0")))
    assert (tmp_path / "m-Q8_0.gguf").read_text() == "mine"


def test_values_of_the_model_itself_are_written(tmp_path: Path) -> None:
    values = (1.0, 0.25, 1e-9)
    model = replace(
        SMALL.model,
        tensors=(*SMALL.model.tensors, GgufTensor("rope_freqs.weight", (3,), values=values)),
    )
    world = write_world(tmp_path, SMALL.model)
    write(tmp_path, world, model, plan_each(model, ("Q4_K_M",)))
    tensors = {item.name: item for item in gguf.GGUFReader(tmp_path / "m-Q4_K_M.gguf").tensors}
    assert np.array_equal(tensors["rope_freqs.weight"].data, np.array(values, dtype=np.float32))
