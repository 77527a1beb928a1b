"""An adapter whose whole effect falls below the last digit of the base's type."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.errors import ProofError
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.models import make_adapter, make_llama

CHANGE = 0.0015
"""Less than half of the last digit of 0.75 in bfloat16, which is 2^-9."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """One channel reaches the head twenty times as strong, by one and the same large weight.

    That moves all logits alike, and so no probability; what is added to the weight does.
    """
    folder = make_llama(tmp_path / "base", tied=False)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = 20.0
    tensors["lm_head.weight"][:, 0] = 0.75
    save_file(tensors, path, {"format": "pt"})
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    folder = make_adapter(base, tmp_path / "adapter", r=1, lora_alpha=1, target_modules=["lm_head"])
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, value in tensors.items():
        if "lora_A" in name:
            value.zero_()
            value[0, 0] = 1.0
        else:
            value.copy_(CHANGE * torch.where(torch.arange(len(value)) % 2 == 0, 1.0, -1.0)[:, None])
    save_file(tensors, path)
    return folder


def make(base: Path, adapter: Path, out: Path, dtype: str | None) -> None:
    options = ReleaseOptions(targets=("merged",), dtype=dtype)
    adapters = ((None, adapter),)
    release(ReleaseRequest(adapters, out, base=str(base), options=options), Silent())


def test_what_bfloat16_cannot_hold_is_refused_with_the_type_that_can(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ProofError, match="does not behave") as caught:
        make(base, adapter, out, None)
    assert "effect_lost" in caught.value.found
    assert caught.value.hint.endswith("--dtype float32")
    assert not out.exists()
    make(base, adapter, out, "F32")
    assert (out / "lorapack.json").is_file()
