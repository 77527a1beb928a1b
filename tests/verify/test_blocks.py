"""Level `weights` for GGUF: files as written pass; whatever differs is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from packager.gguf.value import GgufKey
from packager.verify.blocks import check_blocks
from packager.verify.proof import BlocksCheck
from packager.verify.truthrows import stream_truth
from tests.gguf.cases import CASES, write_model, write_pieces
from tests.models import make_adapter
from tests.verify.ggufs import Made, make_ggufs

QUANTS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0", "Q4_K_M")


@pytest.fixture(scope="module")
def made(small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_ggufs(small_base, small_adapter, tmp_path_factory.mktemp("blocks"), *QUANTS)


def check(made: Made, quant: str, folder: Path | None = None, **options: object) -> BlocksCheck:
    return check_blocks(made.plan, quant, folder or made.folder, made.sources, **options)


@pytest.mark.parametrize("quant", QUANTS)
def test_files_as_written_pass(made: Made, quant: str) -> None:
    found = check(made, quant)
    assert found.problems == ()
    assert found.checked == found.total == len(made.plan.tensors)
    assert sum(total for _, total in found.by_type.values()) == found.total
    assert found.equal_blocks > 0.999


def test_straight_from_float32_is_closer_than_over_16_bits(made: Made) -> None:
    found = {quant: check(made, quant) for quant in QUANTS}
    finer = ("F32", "F16", "Q8_0")
    assert all(found[quant].error < found[quant].error_from_16bit for quant in finer)
    assert found["F32"].error < 1e-7
    assert 1e-4 < found["F32"].error_from_16bit < 2.0**-8
    assert found["BF16"].error == pytest.approx(found["BF16"].error_from_16bit, rel=1e-9)
    assert found["F16"].error < found["Q8_0"].error < found["Q4_0"].error
    assert {item.rounded_to for item in found.values()} == {"BF16"}


def test_a_sample_covers_every_type_and_kind(made: Made) -> None:
    found = check(made, "Q8_0", sample_values=1)
    assert found.problems == ()
    assert found.checked < found.total
    assert all(done for done, _ in found.by_type.values())


@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_0"])
def test_a_file_without_the_adapter_is_found_out(
    made: Made, small_base: Path, small_adapter: Path, tmp_path: Path, quant: str
) -> None:
    make_ggufs(small_base, small_adapter, tmp_path, quant, lost=True)
    found = check(made, quant, tmp_path)
    changed = sum(1 for tensor in made.plan.merged if tensor.deltas)
    assert len(found.problems) == changed
    assert all("is not base + adapter" in line for line in found.problems)


def test_a_single_wrong_value_is_found(made: Made, tmp_path: Path) -> None:
    copy = _copy(made, "F16", tmp_path)
    [placed] = _tensor(made, "F16", "blk.1.ffn_up.weight")
    _patch(copy, placed.offset + 2 * (64 * 7 + 3), lambda byte: byte ^ 1)
    [problem] = check(made, "F16", tmp_path).problems
    assert problem == "blk.1.ffn_up.weight is not base + adapter, first in row 7"


def test_rows_in_another_order_are_found(made: Made, tmp_path: Path) -> None:
    """What llama.cpp would rotate wrongly: the rows of queries as transformers has them."""
    plan = replace(
        made.plan,
        tensors=tuple(
            replace(it, transform="none") if "attn_q" in it.name else it for it in made.plan.tensors
        ),
    )
    problems = check_blocks(plan, "F32", made.folder, made.sources).problems
    assert [line.split()[0] for line in problems] == [f"blk.{n}.attn_q.weight" for n in range(4)]


def test_keys_and_tensors_are_accounted_for(made: Made) -> None:
    lacking = replace(made.plan, keys=made.plan.keys[1:])
    changed = replace(
        made.plan,
        keys=tuple(
            replace(key, value=9) if key.name == "llama.block_count" else key
            for key in made.plan.keys
        ),
    )
    more = replace(made.plan, keys=(*made.plan.keys, GgufKey("llama.new", "bool", value=True)))
    assert _problems(lacking, made) == [f"key {made.plan.keys[0].name} is left over"]
    assert _problems(changed, made) == ["key llama.block_count is '4', not '9'"]
    assert _problems(more, made) == ["key llama.new is missing"]
    [file] = (file for file in made.plan.files if file.quant == "Q8_0")
    fewer = replace(made.plan, files=(replace(file, tensors=file.tensors[1:]),))
    assert _problems(fewer, made) == [f"{file.tensors[0].tensor.name} is left over"]
    first = file.tensors[0]
    other = replace(first, tensor=replace(first.tensor, type="Q4_0"))
    typed = replace(made.plan, files=(replace(file, tensors=(other, *file.tensors[1:])),))
    [problem] = _problems(typed, made)
    assert problem.startswith(f"{first.tensor.name} is {first.tensor.type} (")


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing"])
def test_a_damaged_file_is_a_problem_and_no_traceback(
    made: Made, tmp_path: Path, damage: str
) -> None:
    copy = _copy(made, "Q8_0", tmp_path)
    if damage == "missing":
        copy.unlink()
    else:
        size = copy.stat().st_size
        copy.write_bytes(b"\0" * size if damage == "garbage" else copy.read_bytes()[: size // 2])
    [problem] = check(made, "Q8_0", tmp_path).problems
    assert "Q8_0.gguf" in problem


@pytest.fixture(scope="module")
def weighted(
    small_base: Path, small_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Made, dict]:
    """A file made with an importance matrix, and the matrix; one tensor's weights do not fit."""
    names = [f"blk.{layer}.{kind}.weight" for layer in range(4) for kind in ("ffn_up", "attn_q")]
    weights = {name: np.geomspace(1e-3, 1e3, 64).astype(np.float32) for name in names}
    weights["token_embd.weight"] = np.ones(7, np.float32)
    fitting = {name: weights[name] for name in names}
    folder = tmp_path_factory.mktemp("weighted")
    made = make_ggufs(small_base, small_adapter, folder, "Q4_0", "Q4_K_M", importance=fitting)
    return made, weights


def test_an_importance_matrix_is_taken_into_account(weighted: tuple[Made, dict]) -> None:
    made, weights = weighted
    found = check(made, "Q4_0", importance=weights)
    assert found.problems == ()
    assert found.equal_blocks is not None
    assert found.equal_blocks > 0.999


def test_without_the_matrix_values_are_compared(weighted: tuple[Made, dict]) -> None:
    made, _ = weighted
    found = check(made, "Q4_0")
    assert (found.problems, found.equal_blocks) == ((), None)
    assert found.error > 0


def test_without_the_matrix_a_lost_adapter_is_found_out(
    weighted: tuple[Made, dict], small_base: Path, small_adapter: Path, tmp_path: Path
) -> None:
    made, weights = weighted
    fitting = {name: item for name, item in weights.items() if item.size == 64}
    make_ggufs(small_base, small_adapter, tmp_path, "Q4_0", lost=True, importance=fitting)
    problems = check(made, "Q4_0", tmp_path).problems
    changed = sum(1 for tensor in made.plan.merged if tensor.deltas)
    assert len(problems) > changed / 2


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "qwen3-moe", "phi3", "stablelm"])
def test_families_with_other_layouts(name: str, tmp_path: Path) -> None:
    base = write_model(CASES[name], tmp_path / "base", write_pieces(tmp_path / "pieces"))
    adapter = make_adapter(base, tmp_path / "adapter")
    made = make_ggufs(base, adapter, tmp_path / "out", "F32", "Q8_0")
    assert check(made, "F32").problems == ()
    assert check(made, "Q8_0").problems == ()


def test_the_truth_covers_every_row_once(made: Made) -> None:
    merged = {tensor.name: tensor for tensor in made.plan.merged}
    for tensor in made.plan.tensors:
        blocks = [rows.truth for rows in stream_truth(tensor, merged, made.sources)]
        assert torch.cat(blocks).numel() == np.prod(tensor.shape)


def _problems(plan: object, made: Made) -> list[str]:
    return list(check_blocks(plan, "Q8_0", made.folder, made.sources).problems)


def _copy(made: Made, quant: str, folder: Path) -> Path:
    return Path(shutil.copy(made.path(quant), folder))


def _tensor(made: Made, quant: str, name: str) -> list:
    return [
        placed
        for file in made.plan.files
        if file.quant == quant
        for placed in file.tensors
        if placed.tensor.name == name
    ]


def _patch(path: Path, offset: int, change: Callable[[int], int]) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([change(byte)]))
