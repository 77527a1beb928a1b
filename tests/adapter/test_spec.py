"""The adapter as a value: every tensor has a module, a feature, or is left over by name."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from packager.adapter import read_adapter
from packager.errors import AdapterError, InputError, UnsafeInputError
from tests.folders import PREFIX, Q_PROJ, pair, write_adapter, write_adapter_config

Save = Callable[..., Path]


@pytest.fixture
def save_with_peft(tmp_path: Path) -> Save:
    """Saves an untrained adapter of a tiny Llama as a trainer would."""

    def save(*, tied: bool = False, **lora: Any) -> Path:
        config = LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
        )  # fmt: skip
        arguments = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj"], **lora}
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(**arguments))
        model.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def test_what_peft_saves_is_read(save_with_peft: Save) -> None:
    spec = read_adapter(
        save_with_peft(rank_pattern={"k_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 3})
    )
    assert {name: (m.rank, m.alpha, m.scale) for name, m in spec.modules.items()} == {
        "model.layers.0.self_attn.k_proj": (2, 8, 4),
        "model.layers.0.self_attn.q_proj": (4, 8, 2),
        "model.layers.1.self_attn.k_proj": (2, 8, 4),
        "model.layers.1.self_attn.q_proj": (4, 3, 0.75),
    }
    assert spec.modules["model.layers.0.self_attn.k_proj"].lora_a.shape == (2, 16)
    assert spec.modules["model.layers.0.self_attn.k_proj"].lora_b.shape == (8, 2)
    assert spec.parameter_count == 2 * (2 * 16 + 8 * 2 + 4 * 16 + 16 * 4)
    assert (spec.ranks, spec.dtypes, spec.leftover) == ((2, 4), ("F32",), ())
    assert [item.name for item in spec.features] == ["lora", "rank_pattern", "alpha_pattern"]
    assert spec.weights_bytes == (spec.directory / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize("tied", [True, False])
def test_the_copy_of_the_head_that_peft_saves_is_no_trained_parameter(
    save_with_peft: Save, tied: bool
) -> None:
    spec = read_adapter(save_with_peft(tied=tied, target_modules=["lm_head"]))
    ((parameter, (copy,)),) = spec.frozen.items()
    assert (parameter, copy.name) == ("lm_head.weight", f"{PREFIX}lm_head.base_layer.weight")
    assert copy.shape == (32, 16)
    assert spec.parameter_count == 4 * 16 + 32 * 4
    assert spec.leftover == ()
    assert [(item.name, item.detail) for item in spec.features] == [
        ("lora", "rank 4, alpha 8"),
        ("copy of base weights", "lm_head"),
    ]
    assert spec.features[1].support["merged"].status == "works"


@pytest.mark.parametrize(
    ("lora", "feature"),
    [
        ({"target_modules": ["embed_tokens"]}, "LoRA on embeddings"),
        ({"use_dora": True}, "dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 3]}, "trainable_token_indices"),
        ({"modules_to_save": ["lm_head", "norm"]}, "modules_to_save"),
    ],
)
def test_tensors_that_are_no_pairs_have_their_place(
    save_with_peft: Save, lora: dict[str, Any], feature: str
) -> None:
    spec = read_adapter(save_with_peft(**lora))
    found = {item.name: item for item in spec.features}
    assert found[feature].support["merged"].status == "works"
    assert found[feature].support["gguf-adapter"].status == "not possible"
    assert spec.leftover == ()
    places = [ref.name for module in spec.modules.values() for ref in module.tensors]
    places += [ref.name for refs in (*spec.saved.values(), *spec.frozen.values()) for ref in refs]
    places += [item.rows.name for item in spec.token_rows.values()]
    assert sorted(places) == sorted(ref.name for ref in spec.tensors)


@pytest.mark.parametrize("field", ["use_dora", "lora_bias"])
def test_a_part_that_the_configuration_tells_of_has_to_be_there(tmp_path: Path, field: str) -> None:
    """PEFT would load random values, or the base's, in its place."""
    with pytest.raises(
        AdapterError, match=r"a part of the adapter of module .* is missing"
    ) as found:
        read_adapter(write_adapter(tmp_path, **{field: True}))
    assert field in found.value.expected


@pytest.mark.parametrize("leaf", ["lora_magnitude_vector", "lora_B.bias"])
def test_a_part_that_the_configuration_does_not_tell_of_is_left_over(
    tmp_path: Path, leaf: str
) -> None:
    name = f"{PREFIX}{Q_PROJ}.{leaf}"
    assert read_adapter(write_adapter(tmp_path, pair(Q_PROJ) | {name: (8,)})).leftover == (name,)


def test_pairs_around_fused_experts_are_found_from_the_outermost_inwards(tmp_path: Path) -> None:
    """PEFT stacks the experts' pairs: rank·experts rows, under nested names."""
    module = "model.layers.0.mlp.experts"
    shapes = pair(module, 16) | pair(f"{module}.base_layer", 16)
    targets = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    spec = read_adapter(write_adapter(tmp_path, shapes, target_parameters=targets))
    assert [item.name for item in spec.features] == ["lora", "target_parameters"]
    assert [(item.module, item.depth) for item in spec.parameters] == [(module, 0), (module, 1)]
    assert {ref.name for item in spec.parameters for ref in item.tensors} == set(shapes)
    assert (spec.modules, spec.leftover) == ({}, ())
    assert spec.targets == ("down_proj", "gate_up_proj")
    assert spec.ranks == (spec.config.rank,)


def test_nested_pairs_that_no_target_explains_are_left_over(tmp_path: Path) -> None:
    shapes = pair("model.layers.0.mlp.experts.base_layer", 16)
    spec = read_adapter(write_adapter(tmp_path, shapes))
    assert [item.name for item in spec.features] == ["lora", "LoRA on fused parameters"]
    assert set(spec.leftover) == set(shapes)


def test_a_convolution_is_a_module_with_a_kernel(tmp_path: Path) -> None:
    name = f"{PREFIX}conv"
    shapes = {f"{name}.lora_A.weight": (4, 3, 2, 5), f"{name}.lora_B.weight": (8, 4, 1, 1)}
    spec = read_adapter(write_adapter(tmp_path, shapes))
    assert [item.name for item in spec.features] == ["lora", "LoRA on convolutions"]
    assert spec.features[1].support["vllm"].status == "merge-only"
    assert (spec.modules["conv"].kernel, spec.modules["conv"].shape) == ((2, 5), (8, 3, 2, 5))
    assert not spec.modules["conv"].is_pair
    assert spec.leftover == ()


def test_a_convolution_in_groups_is_named_not_called_damaged(tmp_path: Path) -> None:
    name = f"{PREFIX}conv"
    shapes = {f"{name}.lora_A.weight": (4, 3, 2), f"{name}.lora_B.weight": (8, 2, 1)}
    spec = read_adapter(write_adapter(tmp_path, shapes))
    assert [item.name for item in spec.features] == ["lora", "LoRA on convolutions in groups"]
    assert spec.features[1].support["merged"].status == "not possible"
    assert set(spec.leftover) == set(shapes)


def test_a_kernel_of_b_that_is_no_point_contradicts_peft(tmp_path: Path) -> None:
    name = f"{PREFIX}conv"
    shapes = {f"{name}.lora_A.weight": (4, 3, 2), f"{name}.lora_B.weight": (8, 4, 2)}
    with pytest.raises(AdapterError, match="contradict"):
        read_adapter(write_adapter(tmp_path, shapes))


def test_other_tuners_are_read(tmp_path: Path) -> None:
    spec = read_adapter(
        write_adapter(tmp_path, {f"{PREFIX}a.hada_w1_a": (8, 4)}, peft_type="LOHA", r=4)
    )
    assert (spec.modules, spec.leftover) == ({}, ())
    assert [ref.name for ref in spec.tensors] == [f"{PREFIX}a.hada_w1_a"]
    assert [item.name for item in spec.features] == ["loha"]


@pytest.mark.parametrize("part", ["A", "B"])
def test_half_a_pair_is_refused(tmp_path: Path, part: str) -> None:
    shapes = {name: shape for name, shape in pair(Q_PROJ).items() if f"lora_{part}." not in name}
    with pytest.raises(AdapterError, match="half of the adapter") as caught:
        read_adapter(write_adapter(tmp_path, shapes))
    assert Q_PROJ in caught.value.what
    assert caught.value.found == f"no lora_{part}"


@pytest.mark.parametrize(
    "shapes",
    [
        pair(Q_PROJ, rank=8),
        pair(Q_PROJ) | {f"{PREFIX}{Q_PROJ}.lora_B.weight": (8, 5)},
        pair(Q_PROJ) | {f"{PREFIX}{Q_PROJ}.lora_A.weight": (32,)},
        pair(Q_PROJ, rank=8, width=4),
    ],
)
def test_a_rank_that_contradicts_the_config_is_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(AdapterError, match="contradict") as caught:
        read_adapter(write_adapter(tmp_path, shapes))
    assert "rank 4" in caught.value.expected
    assert str(shapes[f"{PREFIX}{Q_PROJ}.lora_A.weight"]) in caught.value.found


@pytest.mark.parametrize(
    "name",
    [
        f"{Q_PROJ}.lora_A.weight",  # no prefix
        f"{PREFIX}{Q_PROJ}.lora_A.default.weight",  # PEFT's name in memory
        f"{PREFIX}{Q_PROJ}.lora_C.weight",
        f"{PREFIX}other.base_layer.weight",  # a copy below no pair
        "stray",
    ],
)
def test_a_tensor_of_no_module_is_left_over_by_name(tmp_path: Path, name: str) -> None:
    spec = read_adapter(write_adapter(tmp_path, pair(Q_PROJ) | {name: (4, 8)}))
    assert spec.leftover == (name,)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    write_adapter_config(tmp_path)
    torch.save({f"{PREFIX}{Q_PROJ}.lora_A.weight": torch.zeros(4, 8)}, tmp_path / name)
    with pytest.raises(UnsafeInputError, match="pickle") as caught:
        read_adapter(tmp_path)
    assert caught.value.where == str(tmp_path / name)
    assert "save_pretrained" in caught.value.hint


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused_unopened(tmp_path: Path, protocol: int) -> None:
    write_adapter_config(tmp_path)
    ran = tmp_path / "was-run"
    data = pickle.dumps(Evil(ran), protocol=protocol)
    (tmp_path / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(UnsafeInputError, match="pickle"):
        read_adapter(tmp_path)
    assert not ran.exists()


def test_a_folder_that_holds_no_adapter_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such adapter folder"):
        read_adapter(tmp_path / "不存在")
    (tmp_path / "notes.txt").write_text("?", encoding="utf-8")
    with pytest.raises(AdapterError, match="holds no adapter") as caught:
        read_adapter(tmp_path)
    assert (caught.value.expected, caught.value.found) == ("adapter_config.json", "notes.txt")
    write_adapter_config(tmp_path)
    with pytest.raises(AdapterError, match="no weights"):
        read_adapter(tmp_path)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no tensors"):
        read_adapter(write_adapter(tmp_path, {}))


def test_a_weights_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        read_adapter(tmp_path)


def test_rslora_scale_is_alpha_over_the_root_of_the_rank(tmp_path: Path) -> None:
    spec = read_adapter(write_adapter(tmp_path, use_rslora=True))
    assert spec.modules[Q_PROJ].scale == 8 / math.sqrt(4)
