"""Factors of fused experts are read once, however many experts there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from packager.factorreader import read_part
from packager.merge import PartFactors, StackFactors
from packager.plan import PartDelta
from packager.tensorfile import TensorRef, read_header
from tests.counting import bytes_read

EXPERTS, RANK, WIDTH, HEIGHT = 48, 4, 24, 40


@pytest.fixture
def refs(tmp_path: Path) -> dict[str, TensorRef]:
    tensors = {
        "a": torch.randn(EXPERTS * RANK, WIDTH).bfloat16(),
        "b": torch.randn(HEIGHT, EXPERTS * RANK).bfloat16(),
    }
    save_file(tensors, tmp_path / "adapter.safetensors")
    return {ref.name: ref for ref in read_header(tmp_path / "adapter.safetensors").tensors}


def delta(expert: int | None) -> PartDelta:
    return PartDelta(
        "x", "experts.up", "a", "b", RANK, 2.0, experts=EXPERTS, expert=expert, transposed=False,
        first_output=8, outputs=32, first_row=0, share=0, shares=1, kind="expert-lora",
    )  # fmt: skip


@pytest.mark.parametrize("stored", ["one by one", "as a stack"])
def test_all_experts_together_read_the_factors_once(
    stored: str, refs: dict[str, TensorRef]
) -> None:
    start = bytes_read()
    rows = torch.zeros(EXPERTS, 32, WIDTH)
    for expert in range(EXPERTS):
        place = expert if stored == "one by one" else None
        update = read_part(delta(place), refs, torch.float32, None)
        if isinstance(update, StackFactors):
            update.apply(rows.view(-1, WIDTH), 0)
            break
        assert isinstance(update, PartFactors)
        update.apply(rows[expert], 0)
    whole = sum(ref.nbytes for ref in refs.values())
    assert bytes_read() - start < 1.5 * whole
    # As PEFT puts a stack together: tuners/lora/layer.py, ParamWrapper.get_delta_weight.
    read = {name: ref_values(ref) for name, ref in refs.items()}
    a = read["a"].view(EXPERTS, RANK, WIDTH)
    b = read["b"].view(HEIGHT, RANK, EXPERTS)
    wanted = 2 * torch.einsum("ore,eri->eoi", b, a)[:, 8:40]
    assert torch.allclose(rows, wanted, rtol=1e-4, atol=1e-5)


def ref_values(ref: TensorRef) -> torch.Tensor:
    raw = ref.file.read_bytes()[ref.offset : ref.offset + ref.nbytes]
    return torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).view(ref.shape).float()
