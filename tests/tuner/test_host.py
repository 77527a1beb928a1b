"""A module through PEFT's own layer against PEFT's merge of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file
from torch import Tensor

from packager.adapter.tuner import KNOWN
from packager.errors import AdapterError, LorapackError
from packager.tuner import ModuleJob, merge_module
from tests.tuner.cases import MERGED, REFUSED, VARIANTS, Tuned
from tests.tuner.conftest import MakeTuned

CASES = {
    **{name: (name, arguments) for name, arguments in MERGED.items() if name not in KNOWN},
    **VARIANTS,
}
PROMPTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE",
    "ADAPTION_PROMPT",
}  # fmt: skip
ELSEWHERE = {"LORA", "XLORA", "SHADOW"}
UNINSTALLED = {"ADAMSS"}
"""PEFT makes none without scikit-learn."""


def test_every_tuner_of_peft_has_its_case() -> None:
    known = {str(name.value) for name in PEFT_TYPE_TO_TUNER_MAPPING}
    assert known == {*MERGED, *REFUSED, *PROMPTS, *ELSEWHERE, *UNINSTALLED}


def make_job(case: Tuned, module: str, dtype: torch.dtype = torch.float32) -> ModuleJob:
    base = load_file(case.base / "model.safetensors")
    adapter = load_file(case.folder / "adapter_model.safetensors")
    own = f"base_model.model.{module}."
    return ModuleJob(
        case.base,
        case.folder,
        module,
        {
            name.removeprefix(f"{module}."): value.to(dtype)
            for name, value in base.items()
            if name.rpartition(".")[0] == module
        },
        {
            name: value
            for name, value in adapter.items()
            if name.startswith(own) or not name.startswith("base_model.model.")
        },
    )


def changed_modules(case: Tuned) -> dict[str, dict[str, Tensor]]:
    """What PEFT's merge changes: module → its parameters afterwards."""
    before = load_file(case.base / "model.safetensors")
    after = case.load().merge_and_unload().state_dict()
    names = {
        name.rpartition(".")[0] for name, value in before.items() if not value.equal(after[name])
    }
    found: dict[str, dict[str, Tensor]] = {module: {} for module in names}
    for name in before:
        module, _, leaf = name.rpartition(".")
        if module in found:
            found[module][leaf] = after[name]
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_merged_as_peft_merges_the_model(name: str, tuned: MakeTuned) -> None:
    case = tuned(name, *CASES[name])
    wanted = changed_modules(case)
    assert len(wanted) >= 3
    for module, parameters in wanted.items():
        made = merge_module(make_job(case, module), torch.float32)
        exact = merge_module(make_job(case, module), torch.float64)
        assert made.keys() == parameters.keys()
        for leaf, truth in parameters.items():
            assert made[leaf].dtype == torch.float32
            largest = max(1.0, float(truth.abs().max()))
            # Sums are ordered by where the operands happen to lie in memory.
            assert float((made[leaf] - truth).abs().max()) <= 2**-23 * largest, f"{module}.{leaf}"
            assert exact[leaf].dtype == torch.float64
            assert float((exact[leaf] - truth.double()).abs().max()) < 1e-6 * largest


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_does_not_merge_by_module_is_refused_by_name(name: str, tuned: MakeTuned) -> None:
    reason, arguments = REFUSED[name]
    case = tuned(f"{name} refused", name, arguments)
    with pytest.raises(LorapackError) as caught:
        merge_module(make_job(case, "model.layers.1.mlp.up_proj"), torch.float32)
    assert name.lower() in caught.value.what
    assert any(part in caught.value.found for part in reason.split("|"))
    assert caught.value.hint == "keep the adapter separate: --target adapter"


def test_a_bias_that_is_not_there_cannot_be_trained_into_the_weights(tuned: MakeTuned) -> None:
    case = tuned("BEFT", "BEFT", MERGED["BEFT"])
    config = (case.folder / "adapter_config.json").read_text(encoding="utf-8")
    assert "q_proj" in config
    job = make_job(case, "model.layers.0.self_attn.q_proj")
    assert merge_module(job, torch.float32)["bias"].shape == (64,)
    lacking = ModuleJob(
        job.base, job.adapter, job.module, {"weight": job.parameters["weight"]}, job.tensors
    )
    with pytest.raises(LorapackError, match="not what transformers makes of this base"):
        merge_module(lacking, torch.float32)


def test_tensors_that_are_missing_or_left_over_are_named(tuned: MakeTuned) -> None:
    case = tuned("LOHA", "LOHA", MERGED["LOHA"])
    job = make_job(case, "model.layers.0.mlp.up_proj")
    left = dict(list(job.tensors.items())[1:])
    gone = next(iter(job.tensors))
    with pytest.raises(AdapterError) as caught:
        merge_module(
            ModuleJob(job.base, job.adapter, job.module, job.parameters, left), torch.float32
        )
    assert gone in caught.value.expected
    more: dict[str, Any] = {**job.tensors, "base_model.stray": torch.ones(1)}
    with pytest.raises(AdapterError) as caught:
        merge_module(
            ModuleJob(job.base, job.adapter, job.module, job.parameters, more), torch.float32
        )
    assert caught.value.found == "base_model.stray"


def test_the_inputs_stay_as_they_were(tuned: MakeTuned) -> None:
    case = tuned("LOKR", "LOKR", MERGED["LOKR"])
    job = make_job(case, "model.layers.0.mlp.up_proj")
    before = {name: value.clone() for name, value in {**job.parameters, **job.tensors}.items()}
    merge_module(job, torch.float32)
    for name, value in {**job.parameters, **job.tensors}.items():
        assert torch.equal(value, before[name])
    assert isinstance(case.folder, Path)
