"""A merged model against PEFT: as close to the truth on every tensor, the same in its logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from tests.merge.conftest import VARIANTS, Case, load, load_peft, read_tensors

BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
SMALLEST = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
PRECISION = {torch.float32: 2.0**-53, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
TIES = {torch.float32: 0.0, torch.bfloat16: 1e-6, torch.float16: 1e-6}
"""Two sums in float32 round a value that lies within 2^-24 of a tie to either side."""
EFFECT_LOST = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
"""Largest share of the adapter's effect on the logits that rounding the weights may take."""

DTYPES = ("float32", "bfloat16", "float16")
CASES: list[dict[str, Any]] = [
    {"variant": variant, "dtype": dtype, "sharded": (number + place) % 2 == 0}
    for number, variant in enumerate(VARIANTS)
    for place, dtype in enumerate(DTYPES)
]
CASES += [
    {"variant": variant, "dtype": dtype, "out_dtype": out_dtype, "sharded": dtype != "float32"}
    for variant, dtype, out_dtype in (
        ("lora", "float32", "bfloat16"),
        ("tied head", "bfloat16", "float32"),
        ("patterns", "float32", "float16"),
        ("untied head", "float16", "bfloat16"),
    )
]
CASES += [
    {"variant": "rslora", "dtype": "bfloat16", "adapter_dtype": "bfloat16"},
    {"variant": "tied head", "dtype": "float16", "adapter_dtype": "float16", "sharded": True},
]


def name_case(arguments: dict[str, Any]) -> str:
    return "-".join(str(value) for value in arguments.values())


@pytest.fixture(params=CASES, ids=name_case)
def case(request: pytest.FixtureRequest, make_case: Callable[..., Case]) -> Case:
    return make_case(**request.param)


def truths(case: Case, base: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """W + s·B·A in float64 by output name, with Σ|terms|; factors and scales are PEFT's own."""
    made: dict[str, tuple[Tensor, Tensor]] = {}
    model = load_peft(case).base_model.model
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            stored = base.get(f"{name}.weight")
            weight = base["model.embed_tokens.weight"] if stored is None else stored
            lora_a = layer.lora_A["default"].weight.detach().double()
            lora_b = layer.lora_B["default"].weight.detach().double()
            scale = layer.scaling["default"]
            made[f"{name}.weight"] = (
                weight.double() + scale * (lora_b @ lora_a),
                weight.double().abs() + scale * (lora_b.abs() @ lora_a.abs()),
            )
    return made


def unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place at each value."""
    exponent = torch.floor(torch.log2(values.abs().clamp_min(2.0 ** SMALLEST[dtype])))
    return 2.0 ** (exponent - BITS[dtype])


def test_every_tensor_is_as_close_to_the_truth_as_peft_s(case: Case) -> None:
    base, merged = read_tensors(case.base), read_tensors(case.merged)
    oracle = load_peft(case, case.out_dtype).merge_and_unload().state_dict()
    dtype = getattr(torch, case.out_dtype)
    wanted = truths(case, base)
    assert wanted
    for name, (truth, magnitude) in wanted.items():
        assert merged[name].dtype == dtype
        error = (merged[name].double() - truth).abs()
        peft = (oracle[name].double() - truth).abs()
        assert error.mean() <= peft.mean() * (1 + TIES[dtype]), name
        bound = 0.5 * unit(truth, dtype) * (1 + 1e-12) + magnitude * 16 * PRECISION[dtype]
        assert bool((error <= bound).all()), name
        source = base.get(name, base["model.embed_tokens.weight"])
        assert not torch.equal(merged[name], source.to(dtype)), f"{name} did not change"


def test_all_other_tensors_are_the_base_s_byte_for_byte(case: Case) -> None:
    base, merged = read_tensors(case.base), read_tensors(case.merged)
    changed = set(truths(case, base))
    assert set(merged) == set(base) | changed
    for name in set(base) - changed:
        expected = base[name].to(getattr(torch, case.out_dtype))
        assert torch.equal(merged[name].view(torch.uint8), expected.view(torch.uint8)), name


def test_the_reloaded_model_answers_as_base_and_adapter(case: Case) -> None:
    tokens = torch.arange(4, 100).view(4, 24)
    with torch.inference_mode():
        truth = load_peft(case)(input_ids=tokens).logits.double()
        found = load(case.merged)(input_ids=tokens).logits.double()
        base = load(case.base)(input_ids=tokens).logits.double()
    effect = (base - truth).norm()
    assert effect > 0.1 * truth.norm(), "the adapter has next to no effect"
    assert (found - truth).norm() <= EFFECT_LOST[case.out_dtype] * effect


def test_config_and_index_describe_the_weights(case: Case) -> None:
    base_config, config = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (case.base, case.merged)
    )
    unties = case.variant == "tied head"
    assert config["dtype"] == case.out_dtype
    assert config["tie_word_embeddings"] is (base_config["tie_word_embeddings"] and not unties)
    ours = {"dtype", "tie_word_embeddings"}
    assert {key: value for key, value in config.items() if key not in ours} == {
        key: value for key, value in base_config.items() if key not in ours
    }
    merged = read_tensors(case.merged)
    path = case.merged / "model.safetensors.index.json"
    files = sorted(file.name for file in case.merged.glob("*.safetensors"))
    assert path.exists() is (len(files) > 1)
    if path.exists():
        index = json.loads(path.read_text(encoding="utf-8"))
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged.values())
        assert sorted(index["weight_map"]) == sorted(merged)
        for file in files:
            held = read_file_names(case, file)
            assert held == {name for name, place in index["weight_map"].items() if place == file}


def read_file_names(case: Case, file: str) -> set[str]:
    from safetensors import safe_open

    with safe_open(case.merged / file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        return set(opened.keys())
