"""Every parameter of a model is found in its checkpoint where transformers finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from packager.base import read_base
from tests.merge.families import CONFIGS, answer, load, load_tuned, make_model, save_base
from tests.merge.oracle import check_against_peft, merge, save_pair

EXPECTED = {
    "mixtral": "model.layers.0.block_sparse_moe.experts.3.w1.weight",
    "qwen2-moe": "model.layers.1.mlp.experts.2.gate_proj.weight",
    "qwen3-moe": "model.layers.0.mlp.experts.0.down_proj.weight",
    "gpt-oss": "model.layers.0.mlp.experts.gate_up_proj",
    "granite-moe": "model.layers.0.block_sparse_moe.input_linear.weight",
    "deepseek": "model.layers.1.mlp.experts.3.up_proj.weight",
    "phi3": "model.layers.0.self_attn.qkv_proj.weight",
    "gemma3-vision": "language_model.model.layers.0.self_attn.q_proj.weight",
    "llava": "language_model.model.layers.0.self_attn.q_proj.weight",
    "qwen2-vl": "model.layers.0.self_attn.q_proj.weight",
    "qwen2.5-vl": "visual.blocks.0.attn.qkv.weight",
    "nomic-bert": "nomic_bert.encoder.layers.0.attn.Wqkv.weight",
}
"""A name that the family's checkpoints on the Hub have."""


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_base(family, tmp_path_factory.mktemp("base") / "base")
        return made[family]

    return make


def found_by_transformers(model: Any, stored: list[str]) -> dict[str, set[str]]:
    """Parameter → the stored tensors that it is made of."""
    transforms = get_model_conversion_mapping(model)
    renamings = [item for item in transforms if isinstance(item, WeightRenaming)]
    converters = [item for item in transforms if isinstance(item, WeightConverter)]
    state = model.state_dict()
    found: dict[str, set[str]] = {}
    for name in stored:
        prefix = model.base_model_prefix
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        targets = [renamed]
        for converter in converters:
            if pattern in converter.source_patterns and len(converter.target_patterns) > 1:
                first, *others = converter.target_patterns
                targets += [renamed.replace(first, other) for other in others]
        for target in targets:
            found.setdefault(target, set()).add(name)
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_found_where_transformers_finds_them(family: str, base_of: Any) -> None:
    index = read_base(base_of(family))
    assert EXPECTED.get(family, next(iter(index.tensors))) in index.tensors
    wanted = found_by_transformers(make_model(family), list(index.tensors))
    for parameter, names in wanted.items():
        parts = index.naming.find(parameter)
        assert {part.ref.name for part in parts} == names, parameter
    # Nothing is found for a parameter that the model has not.
    assert index.naming.find("model.layers.9.self_attn.q_proj.weight") == ()


OLDER = {
    "llava": ("vision_tower.", "vision_tower.vision_model."),
    "gpt2": ("transformer.", ""),
}
"""What the Hub's checkpoints have that transformers does not write any more."""


@pytest.mark.parametrize("family", OLDER)
def test_older_checkpoints_are_found_too(family: str, base_of: Any, tmp_path: Path) -> None:
    held = load_file(base_of(family) / "model.safetensors")
    old, new = OLDER[family]
    renamed = {name.replace(old, new, 1): tensor for name, tensor in held.items()}
    assert set(renamed) != set(held)
    (tmp_path / "config.json").write_bytes((base_of(family) / "config.json").read_bytes())
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(answer(load(family, tmp_path)), answer(load(family, base_of(family))))
    naming = read_base(tmp_path).naming
    wanted = found_by_transformers(make_model(family), list(renamed))
    for parameter, names in wanted.items():
        assert {part.ref.name for part in naming.find(parameter)} == names, parameter


LAYERS = {
    "phi3": ["qkv_proj", "gate_up_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gemma3-vision": ["q_proj", "fc1"],
    "llava": ["q_proj", "fc1", "linear_1"],
    "qwen2-vl": ["q_proj", "qkv", "down_proj"],
    "qwen2.5-vl": ["q_proj", "qkv", "down_proj"],
    "mistral3": ["q_proj", "fc1"],
    "nomic-bert": ["q_proj", "v_proj", "up_proj"],
}


@pytest.mark.parametrize("family", LAYERS)
def test_layers_are_merged_under_the_names_of_the_checkpoint(
    family: str, base_of: Any, tmp_path: Path
) -> None:
    pair = save_pair(family, base_of(family), tmp_path, target_modules=LAYERS[family])
    check_against_peft(pair, merge(pair))


_NEW = "base_model.model.model.language_model."
OLDER_MODULES = {
    "gemma3-vision": "base_model.model.language_model.model.",
    "llava": "base_model.model.language_model.model.",
    "qwen2-vl": "base_model.model.model.",
}
"""Where PEFT saved layers of the language model when transformers 4 named modules."""


@pytest.mark.parametrize("family", OLDER_MODULES)
def test_adapters_of_older_transformers_are_the_same(
    family: str, base_of: Any, tmp_path: Path
) -> None:
    pair = save_pair(family, base_of(family), tmp_path, target_modules=["q_proj", "down_proj"])
    new = load_file(merge(pair) / "model.safetensors")
    path = pair.adapter / "adapter_model.safetensors"
    held = load_file(path)
    assert any(name.startswith(_NEW) for name in held)
    renamed = {name.replace(_NEW, OLDER_MODULES[family]): held[name] for name in held}
    save_file(renamed, path, {"format": "pt"})
    again = load_file(merge(pair, tmp_path / "again") / "model.safetensors")
    assert new.keys() == again.keys()
    assert all(torch.equal(new[name], again[name]) for name in new)


def test_a_language_model_loaded_by_itself_is_found_in_the_composite_model(
    base_of: Any, tmp_path: Path
) -> None:
    # AutoModelForCausalLM loads but the language model of a Llama 4.
    base = base_of("llama4-vision")
    pair = save_pair(
        "llama4", base, tmp_path, target_modules=["q_proj"], target_parameters=["down_proj"]
    )
    merged = load_file(merge(pair) / "model.safetensors")
    before = load_file(base / "model.safetensors")
    tuned = load_tuned("llama4", base, pair.adapter).merge_and_unload().state_dict()
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert len(changed) == 4
    for name in changed:
        wanted = tuned[name.removeprefix("language_model.")]
        torch.testing.assert_close(merged[name], wanted, rtol=1e-5, atol=2e-6)
