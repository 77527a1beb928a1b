"""Convolutions of every dimension, as patch embeddings are: merged as PEFT's own layers merge."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from packager.errors import RejectedPlanError
from packager.mergefolder import merge_to_folder
from packager.progress import Silent
from tests.folders import write_base

KERNELS: dict[str, nn.Module] = {
    "1d": nn.Conv1d(5, 6, 3, stride=2, padding=1),
    "1d of one point": nn.Conv1d(5, 6, 1, bias=False),
    "2d": nn.Conv2d(3, 6, (3, 2)),
    "2d of one point": nn.Conv2d(5, 6, 1),
    "3d": nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4), bias=False),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "rank_pattern": {"conv": 3}},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
}


class Whole(nn.Module):
    """A model with one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.visual = nn.ModuleDict({"conv": layer})

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.visual["conv"](values)
        return result


def make_case(layer: nn.Module, folder: Path, **options: Any) -> tuple[Whole, Path, Path]:
    """A base of one convolution, and an adapter that PEFT saved."""
    base = write_base(folder / "base", ({"model.embed_tokens.weight": (16, 8)},))
    random = torch.Generator().manual_seed(3)
    model = Whole(copy.deepcopy(layer))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random)
    stored = load_file(base / "model.safetensors")
    save_file({**model.state_dict(), **stored}, base / "model.safetensors")
    config = LoraConfig(target_modules=["conv"], **{"r": 4, "lora_alpha": 6, **options})
    tuned = get_peft_model(copy.deepcopy(model), config)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    tuned.save_pretrained(folder / "adapter")
    return model, base, folder / "adapter"


CASES = [
    (kernel, option)
    for kernel, layer in KERNELS.items()
    for option in OPTIONS
    if option != "lora_bias" or layer.bias is not None
]


@pytest.mark.parametrize(("kernel", "option"), CASES)
def test_a_convolution_computes_what_base_and_adapter_do(
    kernel: str, option: str, tmp_path: Path
) -> None:
    layer: Any = KERNELS[kernel]
    model, base, adapter = make_case(layer, tmp_path, **OPTIONS[option])
    merge_to_folder(str(base), adapter, tmp_path / "out", 5 << 30, Silent())
    found = load_file(tmp_path / "out" / "model.safetensors")
    merged = Whole(copy.deepcopy(layer))
    merged.load_state_dict({name: found[name] for name in model.state_dict()})
    size = (2, layer.in_channels, *(8 for _ in layer.kernel_size))
    inputs = torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tuned = PeftModel.from_pretrained(copy.deepcopy(model), adapter).double().eval()
    with torch.inference_mode():
        truth = tuned(inputs)
        plain = model.double()(inputs)
        ours = merged.double()(inputs)
    assert (plain - truth).norm() > 0.1 * truth.norm()
    assert (ours - truth).norm() < 1e-6 * truth.norm()
    theirs = tuned.merge_and_unload().state_dict()
    for name, value in theirs.items():
        assert (found[name].double() - value).norm() <= 2.0**-24 * value.norm(), name


def test_a_bias_that_has_no_place_is_refused_as_peft_refuses_it(tmp_path: Path) -> None:
    layer = nn.Conv2d(4, 6, 3, bias=False)
    model, base, adapter = make_case(layer, tmp_path, lora_bias=True)
    with pytest.raises(RuntimeError, match="bias"):
        PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with pytest.raises(RejectedPlanError, match="lora_bias"):
        merge_to_folder(str(base), adapter, tmp_path / "out", 5 << 30, Silent())
    assert not (tmp_path / "out").exists()


def test_a_convolution_in_groups_is_refused_as_peft_refuses_it(tmp_path: Path) -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    model, base, adapter = make_case(layer, tmp_path)
    with pytest.raises(NotImplementedError, match="groups > 1"):
        PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with pytest.raises(RejectedPlanError, match="sees the inputs of the group only") as caught:
        merge_to_folder(str(base), adapter, tmp_path / "out", 5 << 30, Silent())
    assert "LoRA on convolutions in groups" in str(caught.value)
    assert not (tmp_path / "out").exists()
