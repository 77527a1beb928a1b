"""Tensors of many chunks, of every type and odd shape: what is written is what was meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from packager.digest import hash_file
from packager.emit.making import Making
from packager.emit.target import write_target
from packager.gather import gather
from packager.plan import ReleaseOptions, plan_release
from packager.progress import Silent
from packager.stream import CHUNK_BYTES
from tests.folders import PREFIX, write_adapter, write_base
from tests.merge.conftest import read_tensors
from tests.merge.test_against_peft import PRECISION, unit

ROWS, WIDTH = 5003, 1501
"""A matrix of 30 MB in float32 and 15 MB in half precision, in rows that fit no power of two."""
DOWN = "model.layers.0.mlp.down_proj"
NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def base_tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 0.05).to(dtype)

    return {
        "model.embed_tokens.weight": normal(ROWS, WIDTH),
        f"{DOWN}.weight": normal(ROWS, WIDTH),
        "model.layers.0.wide.weight": normal(2, 3_000_001),
        "model.layers.0.flat.weight": normal(6_000_011),
        "model.layers.0.scalar": normal(1)[0],
        "model.layers.0.none.weight": normal(0, 8),
        "model.layers.0.positions": torch.arange(3_000_000),
        "model.layers.0.mask": torch.randint(0, 2, (977, 3), generator=generator).bool(),
        "model.norm.weight": normal(WIDTH),
    }


def factors(rank: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return (
        torch.randn((rank, width), generator=generator) * 0.1,
        torch.randn((height, rank), generator=generator) * 0.1,
    )


@pytest.fixture(scope="module")
def sources(stored: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `adapter`; the adapter is on a tall, a wide and a tied matrix."""
    folder = tmp_path_factory.mktemp(stored)
    write_base(folder / "base")
    save_file(base_tensors(NAMES[stored]), folder / "base/model.safetensors")
    tensors = {}
    for module, height, width in (
        (DOWN, ROWS, WIDTH), ("model.layers.0.wide", 2, 3_000_001), ("lm_head", ROWS, WIDTH),
    ):  # fmt: skip
        lora_a, lora_b = factors(6, height, width)
        tensors |= {
            f"{PREFIX}{module}.lora_A.weight": lora_a,
            f"{PREFIX}{module}.lora_B.weight": lora_b,
        }
    write_adapter(
        folder / "adapter", r=6, lora_alpha=9, target_modules=["down_proj", "wide", "lm_head"]
    )
    save_file(tensors, folder / "adapter/adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ("F32", None), ("F32", "BF16"), ("BF16", None), ("BF16", "F32"), ("F16", None),
        ("F16", "BF16"),
    ],
    scope="module",
)  # fmt: skip
def test_every_element_is_what_was_meant(sources: Path, tmp_path: Path, dtype: str | None) -> None:
    gathered = gather((("a", sources / "adapter"),), base=str(sources / "base"), progress=Silent())
    options = ReleaseOptions(targets=("merged",), dtype=dtype, max_shard_bytes=40_000_000)
    (target,) = plan_release(gathered.adapters, gathered.base, options).targets
    written = {
        entry.path: entry for entry in write_target(tmp_path, target, gathered, Making(), Silent())
    }
    base = load_file(sources / "base/model.safetensors")
    merged = read_tensors(tmp_path)
    assert set(merged) == {*base, "lm_head.weight"}
    assert base[f"{DOWN}.weight"].nbytes > CHUNK_BYTES
    for name, found in merged.items():
        source = base["model.embed_tokens.weight"] if name == "lm_head.weight" else base[name]
        out = NAMES[dtype] if dtype is not None and source.is_floating_point() else source.dtype
        assert (found.dtype, found.shape) == (out, source.shape), name
        if name in (f"{DOWN}.weight", "model.layers.0.wide.weight", "lm_head.weight"):
            check_merged(found, source)
        else:
            expected = source.to(out)
            same = torch.equal(
                found.view(-1).view(torch.uint8), expected.view(-1).view(torch.uint8)
            )
            assert same, name
    for path in tmp_path.glob("*.safetensors"):
        assert written[path.name].size == path.stat().st_size
        assert written[path.name].sha256 == hash_file(path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
    assert len(set(index["weight_map"].values())) > 1


def check_merged(found: Tensor, source: Tensor) -> None:
    """Compares with W + 1.5·B·A in float64, to half a unit in the last place and the sum's own."""
    lora_a, lora_b = factors(6, *source.shape)
    for first in range(0, source.shape[0], 1000):
        rows = slice(first, first + 1000)
        weight = source[rows].double()
        truth = weight + 1.5 * (lora_b[rows].double() @ lora_a.double())
        magnitude = weight.abs() + 1.5 * (lora_b[rows].double().abs() @ lora_a.double().abs())
        error = (found[rows].double() - truth).abs()
        bound = 0.5 * unit(truth, found.dtype) * (1 + 1e-9)
        assert bool((error <= bound + magnitude * 16 * PRECISION[found.dtype]).all()), first
        assert float((truth - weight).abs().mean()) > 0.01
