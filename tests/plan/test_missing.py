"""What a configuration names and the weights file lacks: refused by name, as PEFT tells it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from packager.errors import AdapterError, RejectedPlanError
from tests.matrix.architecture import ARCHITECTURES, Architecture, write_base
from tests.plan.making import plan, save_changed

WEIGHTS = "adapter_model.safetensors"
START = "base_model.model."
_KEYS = re.compile(r"missing adapter keys while loading the checkpoint: (\[.*\])")


@dataclass(frozen=True)
class Case:
    """An adapter, and the tensors that get lost.

    Attributes:
        row: Architecture of the matrix.
        field: That names what they are of.
        config: Of the adapter.
        lost: Pattern of their names, behind PEFT's prefix.
    """

    row: str
    field: str
    config: dict[str, Any]
    lost: str


CASES = {
    "one layer": Case("llama", "target_modules", {}, r"model\.layers\.1\.self_attn\.q_proj\."),
    "a kind of layer": Case("qwen3", "target_modules", {}, r".*\.v_proj\."),
    "by pattern": Case(
        "gemma2", "target_modules", {"target_modules": r".*\.1\..*(q|v)_proj"}, r".*\.q_proj\."
    ),
    "one of some layers": Case(
        "llama", "target_modules", {"layers_to_transform": [1]}, r".*\.v_proj\."
    ),
    "without a prefix": Case("gpt2", "target_modules", {}, r"transformer\.h\.0\..*c_attn"),
    "the tied head": Case(
        "qwen3", "target_modules", {"target_modules": ["q_proj", "lm_head"]}, r"lm_head\."
    ),
    "a classifier's backbone": Case("bert", "target_modules", {}, r".*\.key\."),
    "a decoder": Case("t5", "target_modules", {}, r"decoder\."),
    "a tower": Case("qwen2.5-vl", "target_modules", {}, r".*visual\."),
    "fused experts": Case(
        "mixtral", "target_parameters", {"target_parameters": ["mlp.experts.down_proj"]},
        r".*\.1\.mlp\.experts\.",
    ),
    "a saved head": Case("llama", "modules_to_save", {"modules_to_save": ["lm_head"]}, "lm_head"),
    "a saved tied head": Case(
        "qwen3", "modules_to_save", {"modules_to_save": ["lm_head"]}, "lm_head"
    ),
    "one of many saved": Case(
        "llama", "modules_to_save", {"modules_to_save": ["layernorm", "model.norm", "mlp"]},
        r"model\.layers\.1\.post_attention_layernorm",
    ),
    "part of a saved module": Case(
        "llama", "modules_to_save", {"modules_to_save": ["mlp"]}, r".*\.1\.mlp\.up_proj"
    ),
    "trained rows": Case(
        "llama", "trainable_token_indices", {"trainable_token_indices": [3, 5]}, ".*embed_tokens"
    ),
    "trained rows by name": Case(
        "llama", "trainable_token_indices",
        {"trainable_token_indices": {"embed_tokens": [3], "lm_head": [4]}}, "lm_head",
    ),
    "trained rows of a tied model": Case(
        "qwen2", "trainable_token_indices", {"trainable_token_indices": [3, 5]}, ".*embed_tokens"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("missing")

    def make(row: str) -> Path:
        if row not in made:
            made[row] = write_base(ARCHITECTURES[row], root / row)
        return made[row]

    return make


def train(row: Architecture, base: Path, out: Path, config: dict[str, Any]) -> Path:
    stated = {"r": 2, "target_modules": list(row.attention), "task_type": row.task, **config}
    kind = stated.pop("kind", LoraConfig)
    return save_changed(get_peft_model(row.load(base), kind(**stated)), out)


def refusal(base: Path, adapter: Path) -> AdapterError:
    with pytest.raises(RejectedPlanError) as caught:
        plan(base, adapter)
    (problem,) = caught.value.problems
    assert isinstance(problem, AdapterError)
    return problem


def drop(adapter: Path, pattern: str) -> list[str]:
    """Takes tensors out of the file, and returns the modules that they were of."""
    tensors = load_file(adapter / WEIGHTS)
    lost = [name for name in tensors if re.match(re.escape(START) + pattern, name)]
    assert lost, "no such tensors"
    assert len(lost) < len(tensors)
    kept = {name: value for name, value in tensors.items() if name not in lost}
    save_file(kept, adapter / WEIGHTS, metadata={"format": "pt"})
    ending = r"(\.base_layer)*\.(lora_[AB]|token_adapter|base_layer)\..*"
    return sorted({re.sub(ending, "", name.removeprefix(START)) for name in lost})


def what_peft_misses(row: Architecture, base: Path, adapter: Path) -> set[str] | None:
    """Returns the modules that PEFT warns of, or None where it does not load the adapter."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            PeftModel.from_pretrained(row.load(base), adapter)
        except KeyError:
            return None
    found = [match[1] for item in said if (match := _KEYS.search(str(item.message)))]
    keys = [key for text in found for key in json.loads(text.replace("'", '"'))]
    return {re.sub(r"(\.base_layer)*\.lora_.*", "", key.removeprefix(START)) for key in keys}


@pytest.mark.parametrize("name", CASES)
def test_what_is_missing_is_refused_by_name(
    name: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    case = CASES[name]
    row, folder = ARCHITECTURES[case.row], base(case.row)
    adapter = train(row, folder, tmp_path / "a", case.config)
    plan(folder, adapter)
    assert what_peft_misses(row, folder, adapter) == set()
    lost = drop(adapter, case.lost)
    missed = what_peft_misses(row, folder, adapter)
    if case.field.startswith("target"):
        assert missed == set(lost)
    else:
        assert missed is None
    problem = refusal(folder, adapter)
    assert f"{case.field} names {len(lost)} " in problem.what
    assert all(item in (problem.expected or "") for item in lost[:1])


@pytest.mark.parametrize("row", ["llama", "bert", "t5"])
def test_other_tuners_are_whole_too(row: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = train(ARCHITECTURES[row], base(row), tmp_path / "a", {"kind": LoHaConfig})
    plan(base(row), adapter)
    name = ARCHITECTURES[row].attention[0]
    drop(adapter, rf".*\.1\..*\.{name}\.")
    assert name in (refusal(base(row), adapter).expected or "")


def test_names_that_the_model_has_not_are_no_reason(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    row, folder = ARCHITECTURES["llama"], base("llama")
    stated = {
        "target_modules": ["q_proj", "c_attn"],
        "modules_to_save": ["lm_head", "score"],
        "exclude_modules": ["layers.0.self_attn.q_proj"],
    }
    adapter = train(row, folder, tmp_path / "a", stated)
    assert what_peft_misses(row, folder, adapter) == set()
    plan(folder, adapter)


def test_what_is_stored_and_not_loaded_is_no_reason(
    base: Callable[[str], Path], tmp_path: Path
) -> None:
    """A layer too many and one that predicts several tokens, as DeepSeek's and Qwen3-Next's."""
    row = ARCHITECTURES["llama"]
    folder = write_base(row, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    last = {name: value for name, value in tensors.items() if ".layers.1." in name}
    tensors |= {name.replace(".layers.1.", ".layers.2."): value for name, value in last.items()}
    tensors |= {name.replace("model.layers.1.", "mtp.layers.0."): last[name] for name in last}
    copies = {name: value.clone() for name, value in tensors.items()}
    save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})
    adapter = train(row, folder, tmp_path / "a", {})
    assert what_peft_misses(row, folder, adapter) == set()
    plan(folder, adapter)
    drop(adapter, r"model\.layers\.1\.self_attn\.o_proj")
    assert "model.layers.1.self_attn.o_proj" in (refusal(folder, adapter).expected or "")
