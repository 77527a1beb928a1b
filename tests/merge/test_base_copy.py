"""The base's head that PEFT saves with a LoRA on it: taken when it is the base's, else refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from packager.errors import BaseMismatchError, LorapackError, RejectedPlanError
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.stamp import stamp_lock
from tests.folders import PREFIX, pair, write_adapter, write_base

EMBEDDING = "model.embed_tokens.weight"
COPY = f"{PREFIX}lm_head.base_layer.weight"


def make(folder: Path, dtype: torch.dtype, copy: Any) -> tuple[Path, Path]:
    """Makes a tied base and an adapter on its head that carries `copy(embedding)`."""
    base = write_base(folder / "base")
    tensors = {name: item.to(dtype) for name, item in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors")
    shapes = pair("lm_head", width=8, height=16)
    adapter = write_adapter(folder / "adapter", shapes, target_modules=["lm_head"])
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path) | {COPY: copy(tensors[EMBEDDING])}, path)
    return base, adapter


def release_all(base: Path, adapter: Path, targets: Any = None) -> Path:
    request = ReleaseRequest(
        ((None, adapter),), adapter.parent / "out", str(base),
        options=ReleaseOptions(targets=targets), behaviour=False,
    )  # fmt: skip
    return release(request, Silent()).bundle


def one_value_less(embedding: Tensor) -> Tensor:
    changed = embedding.clone()
    changed[13, 5] *= 1.5
    return changed


@pytest.mark.parametrize(
    ("dtype", "copied"),
    [
        (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16), (torch.float16, torch.float32),
    ],
)  # fmt: skip
def test_a_copy_in_the_type_of_training_is_the_base_s(
    tmp_path: Path, dtype: torch.dtype, copied: torch.dtype
) -> None:
    base, adapter = make(tmp_path, dtype, lambda embedding: embedding.to(copied))
    merged = load_file(release_all(base, adapter) / "merged/adapter/model.safetensors")
    assert torch.equal(merged[EMBEDDING], load_file(base / "model.safetensors")[EMBEDDING])
    assert merged["lm_head.weight"].dtype == dtype
    stamp_lock(adapter, str(base), Silent())


@pytest.mark.parametrize("targets", [("adapter",), ("merged",), None])
def test_a_copy_with_other_values_is_refused(tmp_path: Path, targets: Any) -> None:
    base, adapter = make(tmp_path, torch.float32, one_value_less)
    with pytest.raises(BaseMismatchError, match="another weight of 'lm_head'") as caught:
        release_all(base, adapter, targets)
    assert EMBEDDING in caught.value.expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    with pytest.raises(BaseMismatchError):
        stamp_lock(adapter, str(base), Silent())
    assert not (adapter / "base.lock.json").exists()


@pytest.mark.parametrize("targets", [("adapter",), ("merged",)])
def test_a_copy_with_more_rows_is_refused(tmp_path: Path, targets: Any) -> None:
    """The vocabulary was enlarged: lora_B fits the base, the head below it does not."""
    base, adapter = make(tmp_path, torch.float32, lambda embedding: embedding.repeat(2, 1))
    with pytest.raises(RejectedPlanError) as caught:
        release_all(base, adapter, targets)
    (problem,) = caught.value.problems
    assert isinstance(problem, LorapackError)
    assert "another width" in problem.what
