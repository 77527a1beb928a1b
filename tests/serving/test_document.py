"""serve.yaml, gate.json and expected.json: written and parsed again, and read by others."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from packager.errors import BundleError
from packager.serving.answer import (
    NOISE,
    Expected,
    ExpectedModel,
    Question,
    bound_divergence,
    parse_expected,
    render_expected,
)
from packager.serving.document import (
    Flag,
    gate_config,
    launch_flags,
    parse_gate,
    parse_serve_yaml,
    render_gate,
    render_serve_yaml,
    weights_folder,
)
from packager.serving.engine import find_lora_rank
from packager.serving.value import (
    Origin,
    ServedAdapter,
    ServedBase,
    ServedMerge,
    ServingPlan,
)

COMMIT = "0123456789abcdef" * 2 + "01234567"
BASE = ServedBase(
    name="org/base",
    origin=Origin("org/base", COMMIT, "sha256:" + "1" * 64, gated=False),
    license="apache-2.0",
    architecture="LlamaForCausalLM",
    nbytes=1000,
    dtype="bfloat16",
    quantization=None,
    context=None,
    shape=None,
    baked=False,
    chat=True,
)
PLAN = ServingPlan(
    vllm_version="0.32.0",
    base=BASE,
    adapters=(
        ServedAdapter("pirate", 8, 10, "sha256:" + "2" * 64),
        ServedAdapter("poet", 16, 10, "sha256:" + "3" * 64, "{{ messages }}", (2, 7)),
    ),
    max_lora_rank=16,
    max_loras=2,
    max_cpu_loras=2,
    gpu_memory_bytes=None,
)


def merged_plan(name: str) -> ServingPlan:
    """A server of one merged model."""
    merged = ServedMerge(name, "sha256:" + "4" * 64, f"merged/{name}", "DoRA")
    return dataclasses.replace(
        PLAN,
        base=dataclasses.replace(BASE, name=name, merged=merged),
        adapters=(),
        gpu_share=0.25,
        service=f"base-{name}",
    )


MIXED = dataclasses.replace(
    PLAN, gpu_share=0.4, neighbours=(merged_plan("sailor"), merged_plan("monk"))
)
NAMES = st.text("abcxyz0189-_.日é", min_size=1, max_size=12).filter(
    lambda name: name[0] not in "-."
)


def with_base(**changes: Any) -> ServingPlan:
    return dataclasses.replace(PLAN, base=dataclasses.replace(BASE, **changes))


def flags_of(text: str) -> dict[str, Any]:
    return parse_serve_yaml(text, where="serve.yaml")


def test_a_server_is_started_with_what_was_computed() -> None:
    text = render_serve_yaml(launch_flags(PLAN), "0.32.0")
    read = yaml.safe_load(text)
    modules = [json.loads(item) for item in read.pop("lora-modules")]
    assert read == {
        "model": "org/base",
        "revision": COMMIT,
        "tokenizer-revision": COMMIT,
        "served-model-name": ["org/base"],
        "dtype": "bfloat16",
        "max-model-len": "auto",
        "enable-lora": True,
        "max-lora-rank": 16,
        "max-loras": 2,
        "max-cpu-loras": 2,
        "trust-request-chat-template": True,
        "middleware": ["lorapack_gate.Gate"],
        "disable-fastapi-docs": True,
        "disable-access-log-for-endpoints": "/health,/ready",
    }
    assert modules == [
        {"name": name, "path": f"adapters/{name}", "base_model_name": "org/base"}
        for name in ("pirate", "poet")
    ]


@pytest.mark.parametrize(
    "base", [{"baked": True}, {"origin": Origin(None, None, "sha256:1", gated=False)}]
)
def test_a_base_in_a_folder_is_loaded_from_there(base: dict[str, Any]) -> None:
    flags = launch_flags(with_base(**base))
    assert flags["model"] == "base"
    assert "revision" not in flags


def test_templates_in_requests_are_trusted_only_where_the_gate_puts_one() -> None:
    plain = dataclasses.replace(PLAN, adapters=PLAN.adapters[:1])
    assert "trust-request-chat-template" not in launch_flags(plain)


def test_a_merged_model_is_loaded_from_its_folder_and_takes_no_adapters() -> None:
    assert yaml.safe_load(render_serve_yaml(launch_flags(merged_plan("monk")), "0.32.0")) == {
        "model": "base",
        "served-model-name": ["monk"],
        "dtype": "bfloat16",
        "max-model-len": "auto",
        "gpu-memory-utilization": 0.25,
        "middleware": ["lorapack_gate.Gate"],
        "disable-fastapi-docs": True,
        "disable-access-log-for-endpoints": "/health,/ready",
    }


@given(
    names=st.lists(NAMES, min_size=1, max_size=4, unique=True),
    share=st.none() | st.integers(1, 1000).map(lambda part: part / 1000),
    context=st.none() | st.integers(1, 1 << 20),
    rank=st.sampled_from([1, 8, 512]),
)
def test_the_launch_configuration_is_read_as_it_was_written(
    names: list[str], share: float | None, context: int | None, rank: int
) -> None:
    adapters = tuple(ServedAdapter(name, rank, 1, "sha256:") for name in names)
    plan = dataclasses.replace(
        with_base(context=context), adapters=adapters, max_lora_rank=rank, gpu_share=share
    )
    flags = launch_flags(plan)
    text = render_serve_yaml(flags, "0.32.0")
    assert flags_of(text) == flags
    # What YAML reads is the same, with lists for tuples.
    assert yaml.safe_load(text) == {
        key: list(value) if isinstance(value, tuple) else value for key, value in flags.items()
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('dtype: "bfloat16"', 'dtype: "bfloat16"\nload-format: "pt"'),
        ('dtype: "bfloat16"', "dtype: 1"),
        ('dtype: "bfloat16"', "dtype: bfloat16"),
        ('dtype: "bfloat16"', 'dtype: "bfloat16"\ndtype: "float16"'),
        ('dtype: "bfloat16"', 'dtype: "bfloat16"\ntrust-remote-code: true'),
        ('["lorapack_gate.Gate"]', '["os.system"]'),
        ('["lorapack_gate.Gate"]', '["lorapack_gate.Gate", "os.system"]'),
        ("adapters/pirate", "/etc"),
        ("adapters/pirate", "adapters/../../pirate"),
        ("adapters/pirate", "adapters/poet"),
        ("max-loras: 2", "max-loras: true"),
        ("max-loras: 2", "max-loras: *anchor"),
        ("max-loras: 2", "max-loras: 2\ngpu-memory-utilization: 1"),
        ('model: "org/base"\n', ""),
        ("enable-lora", "Enable-Lora"),
    ],
)
def test_a_launch_configuration_of_others_is_refused(old: str, new: str) -> None:
    text = render_serve_yaml(launch_flags(PLAN), "0.32.0")
    changed = text.replace(old, new)
    assert changed != text
    with pytest.raises(BundleError, match="not as a release writes it"):
        flags_of(changed)


def test_the_gate_knows_every_model_and_what_is_its_own() -> None:
    config = gate_config(PLAN, "expected.json")
    assert [(item.name, item.kind) for item in config.models] == [
        ("org/base", "base"), ("pirate", "adapter"), ("poet", "adapter"),
    ]  # fmt: skip
    assert config.models[1].chat_template is None
    assert config.models[2].chat_template == "templates/poet.jinja"
    assert config.models[2].stop_token_ids == (2, 7)
    assert parse_gate(render_gate(config), where="gate.json") == config


def test_the_gate_knows_the_models_of_its_neighbours() -> None:
    config = gate_config(MIXED, "expected.json")
    assert [(item.name, item.kind) for item in config.all_models] == [
        ("org/base", "base"), ("pirate", "adapter"), ("poet", "adapter"),
        ("sailor", "merged"), ("monk", "merged"),
    ]  # fmt: skip
    assert [(item.name, item.url) for item in config.neighbours] == [
        ("sailor", "http://base-sailor:8000"), ("monk", "http://base-monk:8000"),
    ]  # fmt: skip
    assert config.neighbours[0].models == gate_config(MIXED.neighbours[0], None).models
    assert weights_folder(config) is None
    assert parse_gate(render_gate(config), where="gate.json") == config
    assert MIXED.names == tuple(model.name for model in config.all_models)


def test_a_server_of_a_merged_model_has_no_base() -> None:
    config = gate_config(merged_plan("monk"), "expected.json")
    assert (config.base, [item.kind for item in config.models]) == ("", ["merged"])
    assert weights_folder(config) == "merged/monk"
    assert parse_gate(render_gate(config), where="gate.json") == config


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../monk"},
        {"name": "a/b"},
        {"models": []},
        {"url": "http://base-monk:8000/v1"},
        {"url": "http://user@base-monk:8000"},
        {"url": "https://base-monk:8000"},
        {"url": "file:///etc/passwd"},
        {"models": [{"name": "pirate", "kind": "merged", "chat_template": None,
                     "stop_token_ids": [], "chat": True}]},
        {"models": [{"name": "other", "kind": "base", "chat_template": None,
                     "stop_token_ids": [], "chat": True}]},
        {"models": [{"name": "monk", "kind": "merged", "chat_template": "../../x",
                     "stop_token_ids": [], "chat": True}]},
    ],
)  # fmt: skip
def test_a_damaged_neighbour_is_refused(change: Mapping[str, Any]) -> None:
    document = json.loads(render_gate(gate_config(MIXED, "expected.json")))
    document["neighbours"][1].update(change)
    with pytest.raises(BundleError, match="configuration is damaged"):
        parse_gate(json.dumps(document), where="gate.json")


def test_only_models_with_a_template_take_conversations() -> None:
    config = gate_config(with_base(chat=False), None)
    assert [item.chat for item in config.models] == [False, False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"base": "other"},
        {"base": ""},
        {"expected": "../expected.json"},
        {"models": []},
        {"extra": 1},
        {"vllm_version": 32},
    ],
)
def test_a_damaged_gate_configuration_is_refused(change: Mapping[str, Any]) -> None:
    document = json.loads(render_gate(gate_config(PLAN, "expected.json")))
    with pytest.raises(BundleError):
        parse_gate(json.dumps({**document, **change}), where="gate.json")


EXPECTED = Expected(
    schema_version=1,
    truth="base + adapter, PEFT 0.21.0, float32",
    prompt_set="lorapack-prompts-1",
    served_dtype="bfloat16",
    models=(
        ExpectedModel("org/base", "base", 0.0, 0.03, (Question((1, 2), (5, 6), (-0.5, -1.0)),)),
        ExpectedModel(
            "pirate", "adapter", 2.0, 0.05, (Question((1,), (5, 6), (-0.5, -1.0), (-3.0, -0.25)),)
        ),
    ),
)


def test_expected_answers_are_read_as_they_were_written() -> None:
    text = render_expected(EXPECTED)
    assert parse_expected(text, where="expected.json") == EXPECTED
    assert json.loads(text)["models"][1]["questions"] == [
        {"prompt": [1], "top": [[5, -0.5], [6, -1.0]], "base": [-3.0, -0.25]}
    ]


def test_answers_of_a_merged_model_are_read_as_they_were_written() -> None:
    """They stand alone: there is no base beside it that could be asked."""
    merged = dataclasses.replace(EXPECTED.models[1], kind="merged")
    alone = dataclasses.replace(EXPECTED, models=(merged,))
    assert parse_expected(render_expected(alone), where="expected.json") == alone


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 9},
        {"served_dtype": "int8"},
        {"models": [{"name": "a"}]},
        {"models": [{"name": "a", "kind": "adapter", "effect": 1.0, "kl_bound": 0.0,
                     "questions": [{"prompt": [1], "top": [[1, -1.0]]}]}]},
        {"models": [{"name": "a", "kind": "adapter", "effect": 1.0, "kl_bound": 0.1,
                     "questions": [{"prompt": [], "top": [[1, -1.0]]}]}]},
        {"models": [{"name": "a", "kind": "adapter", "effect": 1.0, "kl_bound": 0.1,
                     "questions": [{"prompt": [1], "top": [[1, "x"]]}]}]},
        {"models": [{"name": "a", "kind": "merged", "effect": 1.0, "kl_bound": 0.1,
                     "questions": [{"prompt": [1], "top": [[1, -1.0]]}]}]},
    ],
)  # fmt: skip
def test_damaged_answers_are_refused(change: Mapping[str, Any]) -> None:
    document = json.loads(render_expected(EXPECTED))
    with pytest.raises(BundleError, match="expected answers are damaged"):
        parse_expected(json.dumps({**document, **change}), where="expected.json")


@given(effect=st.floats(1e-3, 50), dtype=st.sampled_from(list(NOISE)))
def test_the_bases_answers_are_never_within_an_adapters_bound(effect: float, dtype: Any) -> None:
    assert 0 < bound_divergence(effect, dtype) <= 0.27 * effect


@pytest.mark.parametrize(
    ("rank", "limit"),
    [(1, 1), (2, 8), (8, 8), (9, 16), (129, 256), (300, 320), (512, 512), (513, None)],
)
def test_the_smallest_rank_that_holds_an_adapter_is_taken(rank: int, limit: Flag | None) -> None:
    assert find_lora_rank(rank) == limit
