"""`adapter_config.json` against PEFT itself: selection, patterns, scale; and every field known."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from packager.adapter import AdapterConfig, parse_adapter_config
from packager.adapter.featurerule import NEUTRAL_FIELDS
from packager.errors import AdapterError, UnsafeInputError

LAYERS = (0, 1, 10)
MODULES = (
    *(
        f"model.layers.{number}.{part}"
        for number in LAYERS
        for part in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "mlp.down_proj",
            "mlp.experts.0.up_proj",
            "mlp.experts.1.up_proj",
        )
    ),
    "model.vision.blocks.1.q_proj",
    "blocks.0.k_proj",
    "lm_head",
    "q_proj",
)
SUFFIXES = (
    "q_proj", "k_proj", "down_proj", "up_proj", "lm_head", "proj", "self_attn.q_proj",
    "experts.0.up_proj", "model.layers.1.self_attn.q_proj", "layers.0.mlp.down_proj", "0.up_proj",
)  # fmt: skip
PATTERNS = (
    *SUFFIXES,
    r".*_proj", r".*\.q_proj", r".*\.(q|k)_proj", r"q_proj|k_proj", r"model\.layers\.(0|10)\..*",
    r"layers\.[01]\.self_attn\..*", r"^model.*down_proj", r"lm_head$", r"(?!.*experts).*proj",
    r".*layers\.\d+\.mlp\.experts\.\d+\..*", r"self_attn", r"(?:.*\.)?up_proj", r"",
    r"model\.layers\.1\.(self_attn\.q_proj|mlp\.down_proj)", r".*\.1\..*", r"[a-z.]+",
)  # fmt: skip
LAYER_PATTERNS = ("layers", "blocks", "experts", "h", "(layers|blocks)", r"[a-z]+", "nothing")

names = st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=4, unique=True)
selections = st.one_of(names, st.sampled_from(PATTERNS[1:]).filter(bool))
pattern_maps = st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 64), max_size=5)


def parse(**fields: Any) -> AdapterConfig:
    """Parses a configuration after a passage through JSON, as from a file."""
    raw = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, **fields}
    return parse_adapter_config(json.loads(json.dumps(raw)), where="adapter_config.json")


@st.composite
def selecting_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that decide which modules are adapted, in combinations that PEFT accepts."""
    fields: dict[str, Any] = {"target_modules": draw(selections)}
    if draw(st.booleans()):
        fields["exclude_modules"] = draw(selections)
    if isinstance(fields["target_modules"], list) and draw(st.booleans()):
        layers = st.integers(0, 11)
        fields["layers_to_transform"] = draw(st.one_of(layers, st.lists(layers, max_size=3)))
        patterns = st.sampled_from(LAYER_PATTERNS)
        fields["layers_pattern"] = draw(
            st.one_of(st.none(), patterns, st.lists(patterns, max_size=3))
        )
    return fields


@settings(max_examples=400, deadline=None)
@given(selecting_fields(), st.sampled_from(MODULES))
def test_modules_are_selected_as_peft_selects_them(fields: dict[str, Any], module: str) -> None:
    oracle = bool(check_target_module_exists(LoraConfig(**fields), module))
    assert parse(**fields).selects(module) is oracle


@settings(max_examples=400, deadline=None)
@given(pattern_maps, pattern_maps, st.sampled_from(MODULES))
def test_rank_and_alpha_patterns_match_as_in_peft(
    ranks: dict[str, int], alphas: dict[str, int], module: str
) -> None:
    config = parse(rank_pattern=ranks, alpha_pattern=alphas, target_modules=["q_proj"])
    assert config.rank_of(module) == ranks.get(get_pattern_key(ranks.keys(), module), 8)
    assert config.alpha_of(module) == alphas.get(get_pattern_key(alphas.keys(), module), 16)


class Model(nn.Module):
    """Linear layers under the names in `MODULES`."""

    def __init__(self) -> None:
        super().__init__()
        for name in MODULES:
            parent: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, nn.Linear(2, 3, bias=False))


@settings(max_examples=60, deadline=None)
@given(
    selecting_fields(),
    st.integers(1, 64),
    st.one_of(st.integers(1, 128), st.floats(0.25, 64)),
    st.booleans(),
    pattern_maps,
    pattern_maps,
)
def test_modules_ranks_and_scales_are_those_of_a_real_lora_model(
    fields: dict[str, Any],
    rank: int,
    alpha: float,
    use_rslora: bool,
    ranks: dict[str, int],
    alphas: dict[str, int],
) -> None:
    fields |= {
        "r": rank, "lora_alpha": alpha, "use_rslora": use_rslora,
        "rank_pattern": ranks, "alpha_pattern": alphas,
    }  # fmt: skip
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # patterns that match nothing
        try:
            tuned = LoraModel(Model(), LoraConfig(**fields), "default")
        except ValueError:
            assume(False)  # nothing selected, which PEFT refuses
            raise
    adapted = {
        name: layer for name, layer in tuned.model.named_modules() if isinstance(layer, LoraLayer)
    }
    config = parse(**fields)
    assert {name for name in MODULES if config.selects(name)} == set(adapted)
    for name, layer in adapted.items():
        assert config.rank_of(name) == layer.r["default"]
        assert config.scale_of(name) == layer.scaling["default"]


def test_all_linear_selects_what_peft_would_make_of_it() -> None:
    config = parse(target_modules="all-linear")
    assert config.selects("model.layers.0.self_attn.q_proj")
    assert not config.selects("lm_head")


def test_a_saved_peft_config_is_read_back(tmp_path: Path) -> None:
    saved = LoraConfig(
        r=6,
        lora_alpha=9,
        use_rslora=True,
        target_modules=["q_proj", "v_proj"],
        exclude_modules="lm_head",
        layers_to_transform=[1, 3],
        layers_pattern="layers",
        rank_pattern={"q_proj": 12},
        alpha_pattern={"v_proj": 3},
        task_type="CAUSAL_LM",
        base_model_name_or_path="组织/模型-🏴‍☠️",
        revision="refs/pr/7",
    )
    saved.save_pretrained(tmp_path)
    text = (tmp_path / "adapter_config.json").read_text(encoding="utf-8")
    config = parse_adapter_config(json.loads(text), where="x")
    assert (config.peft_type, config.task_type) == ("LORA", "CAUSAL_LM")
    assert (config.base_name, config.base_revision) == ("组织/模型-🏴‍☠️", "refs/pr/7")
    assert (config.rank, config.alpha, config.use_rslora) == (6, 9, True)
    assert set(config.target_modules or ()) == {"q_proj", "v_proj"}
    assert config.exclude_modules == "lm_head"
    assert (config.layers_to_transform, config.layers_pattern) == ((1, 3), ("layers",))
    assert (config.rank_pattern, config.alpha_pattern) == ({"q_proj": 12}, {"v_proj": 3})
    assert config.raw == json.loads(text)
    assert config.scale_of("model.layers.1.self_attn.q_proj") == 9 / math.sqrt(12)


def test_every_field_of_the_installed_peft_is_known() -> None:
    """A new PEFT brings new fields: each has to be classified before it is called known."""
    assert {field.name for field in dataclasses.fields(LoraConfig)} == set(NEUTRAL_FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0), ("r", -1), ("r", 2.5), ("r", "8"), ("r", None), ("r", True), ("r", 1e300),
        ("r", math.nan), ("lora_alpha", "16"), ("lora_alpha", math.inf), ("lora_alpha", [1]),
        ("use_rslora", "yes"), ("use_rslora", 1), ("target_modules", 5),
        ("target_modules", [1, 2]), ("target_modules", {"q_proj": 1}), ("exclude_modules", [None]),
        ("layers_to_transform", "3"), ("layers_to_transform", [1.5]),
        ("layers_to_transform", [True]), ("layers_pattern", 3), ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}), ("rank_pattern", {"q_proj": "8"}),
        ("rank_pattern", {"q_proj": 1.5}), ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", "q_proj"), ("task_type", 1), ("base_model_name_or_path", ["a"]),
        ("revision", 3), ("peft_type", 7),
    ],
)  # fmt: skip
def test_a_field_of_a_wrong_type_is_named(field: str, value: Any) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_adapter_config(
            {"peft_type": "LORA", "r": 8, "lora_alpha": 16, field: value}, where="there.json"
        )
    assert repr(field) in caught.value.what
    assert caught.value.where == "there.json"
    assert caught.value.hint


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_lora_needs_rank_and_alpha(field: str) -> None:
    raw = {"peft_type": "LORA", "r": 8, "lora_alpha": 16}
    del raw[field]
    with pytest.raises(AdapterError, match=field):
        parse_adapter_config(raw, where="x")


def test_a_document_that_is_no_adapter_is_refused() -> None:
    with pytest.raises(AdapterError, match="not a PEFT adapter"):
        parse_adapter_config({"model_type": "llama"}, where="x")


@pytest.mark.parametrize("pattern", [r"(?:a|aa|aaa)+b", r"(a|a)+b"])
@pytest.mark.parametrize("field", ["target_modules", "rank_pattern", "layers_pattern"])
def test_a_pattern_that_would_run_for_ever_ends_quickly(field: str, pattern: str) -> None:
    value: Any = {pattern: 4} if field == "rank_pattern" else pattern
    fields: dict[str, Any] = {"target_modules": ["q_proj"], field: value}
    if field == "layers_pattern":
        fields["layers_to_transform"] = [0]
    config = parse(**fields)
    ask = config.rank_of if field == "rank_pattern" else config.selects
    started = time.process_time()
    with pytest.raises(UnsafeInputError) as caught:
        ask("a" * 60 + ".q_proj")
    assert time.process_time() - started < 30
    assert pattern in caught.value.where
    assert caught.value.found == "no answer within 1 s"
    assert caught.value.hint


@pytest.mark.parametrize(
    "pattern",
    ["(", "[a", "*", "(?P<a>x)(?P<a>y)", "x" * 20_000, "a{9,1}", "(?:q_prox){e<=1}", r"\p{L}+"],
)
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(UnsafeInputError) as caught:
        parse(target_modules=pattern).selects("q_proj")
    assert pattern[:80] in caught.value.where


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(NEUTRAL_FIELDS)),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_document_is_parsed_or_refused(raw: dict[str, Any]) -> None:
    try:
        config = parse_adapter_config({"r": 8, "lora_alpha": 16, **raw}, where="x")
        config.selects("model.layers.0.q_proj")
        config.scale_of("model.layers.0.q_proj")
    except (AdapterError, UnsafeInputError) as problem:
        assert problem.what  # noqa: PT017 - either outcome is right, a traceback is not
