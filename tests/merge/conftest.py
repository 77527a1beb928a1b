"""Adapters that were really trained, a few steps, on tiny Llamas; and their releases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.models import make_llama

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "all-linear": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7},
    "rslora": {"use_rslora": True, "r": 8, "lora_alpha": 6},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"k_proj": 3, "^model.layers.0.self_attn.q_proj": 5, ".*mlp.*": 11},
        "target_modules": ["q_proj", "k_proj", "down_proj", "up_proj"],
    },
    "layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.0\..*(q|k)_proj|.*down_proj"},
    "exclude": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "k_proj"]},
    "tied head": {"target_modules": ["lm_head", "q_proj"]},
    "untied head": {"target_modules": ["lm_head", "q_proj"]},
}


@dataclass(frozen=True)
class Case:
    """One base, one adapter, and the merged model that a release made of them."""

    base: Path
    adapter: Path
    merged: Path
    dtype: str
    out_dtype: str
    variant: str


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads all safetensors files of a folder."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def load(folder: Path, dtype: str = "float32") -> Any:
    """Loads a model."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


def load_peft(case: Case, dtype: str = "float32") -> Any:
    """Loads base and adapter with PEFT: the oracle."""
    return PeftModel.from_pretrained(load(case.base, dtype), case.adapter)


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool, bool], Path]:
    """Makes a tiny base once for each (dtype, many shards, tied)."""
    made: dict[tuple[str, bool, bool], Path] = {}

    def make(dtype: str, sharded: bool, tied: bool) -> Path:
        key = (dtype, sharded, tied)
        if key not in made:
            folder = tmp_path_factory.mktemp("base") / f"{dtype}-{sharded}-{tied}"
            size = "100KB" if sharded else "5GB"
            made[key] = make_llama(folder, dtype=dtype, tied=tied, max_shard_size=size)
        return made[key]

    return make


def train(base: Path, out: Path, variant: str, adapter_dtype: str = "float32") -> Path:
    """Trains an adapter for a few steps at a high rate, so that its effect is large."""
    arguments = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **VARIANTS[variant]}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        tuned = get_peft_model(load(base), LoraConfig(**arguments))
        text = torch.randint(3, tuned.config.vocab_size, (2, 24))
        weights = [weight for weight in tuned.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=3e-2)
        for _ in range(6):
            tuned(input_ids=text, labels=text).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
    if adapter_dtype != "float32":
        for weight in weights:
            weight.data = weight.data.to(getattr(torch, adapter_dtype))
    tuned.save_pretrained(out)
    return out


MakeCase = Callable[..., Case]


@pytest.fixture(scope="session")
def make_case(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[[str, bool, bool], Path]
) -> MakeCase:
    """Trains and releases once for each combination."""
    made: dict[tuple[Any, ...], Case] = {}

    def make(
        variant: str,
        dtype: str,
        *,
        sharded: bool = False,
        out_dtype: str | None = None,
        adapter_dtype: str = "float32",
    ) -> Case:
        key = (variant, dtype, sharded, out_dtype, adapter_dtype)
        if key not in made:
            base = make_base(dtype, sharded, variant != "untied head")
            folder = tmp_path_factory.mktemp("case")
            adapter = train(base, folder / "适配器", variant, adapter_dtype)
            names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", None: None}
            options = ReleaseOptions(targets=("merged",), dtype=names[out_dtype])
            request = ReleaseRequest(
                adapters=(("merged", adapter),),
                out=folder / "out",
                base=str(base),
                options=options,
                behaviour=False,
            )
            merged = release(request, Silent()).bundle / "merged/merged"
            made[key] = Case(base, adapter, merged, dtype, out_dtype or dtype, variant)
        return made[key]

    return make
