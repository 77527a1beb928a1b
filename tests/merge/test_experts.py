"""Adapters of experts, fused or one by one, against PEFT, under the names of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from packager.base import read_base
from packager.errors import LorapackError, RejectedPlanError
from packager.plan import ReleaseOptions, parse_plan, render_plan
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.tensorfile import TensorRef, read_header
from packager.verify.bundle import verify_bundle
from packager.verify.weights import Sources, check_weights
from tests.merge.families import answer, load, load_tuned, make_model, save_base
from tests.merge.oracle import Pair, check_against_peft, merge, save_pair

MIXTURES = (
    "mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "phimoe", "gpt-oss", "gpt-oss square", "llama4",
    "granite-moe", "deepseek", "jamba", "qwen3-vl-moe",
)  # fmt: skip
ROUTERS = {
    "phimoe": "mlp.router.weight", "gpt-oss": "mlp.router.weight",
    "gpt-oss square": "mlp.router.weight", "llama4": "feed_forward.router.weight",
    "granite-moe": "block_sparse_moe.router.weight", "jamba": "feed_forward.router.weight",
}  # fmt: skip
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
WEIGHTS = "adapter_model.safetensors"

BaseOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> BaseOf:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_base(family, tmp_path_factory.mktemp("base") / "base")
        return made[family]

    return make


@pytest.mark.parametrize("family", MIXTURES)
def test_fused_experts_and_their_router(family: str, base_of: BaseOf, tmp_path: Path) -> None:
    pair = save_pair(
        family,
        base_of(family),
        tmp_path,
        target_modules=["q_proj"],
        target_parameters=[*EXPERTS, ROUTERS.get(family, "mlp.gate.weight")],
        rank_pattern={"gate_up_proj": 5},
        alpha_pattern={"down_proj": 4},
    )
    check_against_peft(pair, merge(pair))


@pytest.mark.parametrize(
    "targets",
    [
        ["experts.down_proj"],
        ["gate_up_proj"],
        ["experts.gate_up_proj_bias", "experts.gate_up_proj", "experts.down_proj_bias",
         "experts.down_proj", "router.weight", "router.bias"],
    ],
    ids=["one of them", "by its last name", "with biases"],
)  # fmt: skip
@pytest.mark.parametrize("use_rslora", [False, True], ids=["LoRA", "rsLoRA"])
def test_each_pair_goes_to_its_parameter(
    targets: list[str], use_rslora: bool, base_of: BaseOf, tmp_path: Path
) -> None:
    # PEFT takes no vectors, such as the router's bias, and passes over them.
    targets = [name for name in targets if name != "router.bias"]
    pair = save_pair(
        "gpt-oss", base_of("gpt-oss"), tmp_path, target_parameters=targets, use_rslora=use_rslora
    )
    check_against_peft(pair, merge(pair))


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "deepseek"])
def test_layers_that_became_parameters(family: str, base_of: BaseOf, tmp_path: Path) -> None:
    names = ["w1", "w2", "w3"] if family == "mixtral" else ["gate_proj", "up_proj", "down_proj"]
    pair = save_pair(family, base_of(family), tmp_path, target_modules=["o_proj", *names])
    config = json.loads((pair.adapter / "adapter_config.json").read_text())
    assert config["target_parameters"], "PEFT trained layers"
    check_against_peft(pair, merge(pair))


ONE_BY_ONE = {
    "mixtral": ("block_sparse_moe", ("w1", "w2", "w3"), "gate"),
    "qwen3-moe": ("mlp", ("gate_proj", "down_proj", "up_proj"), "gate"),
    "olmoe": ("mlp", ("gate_proj", "down_proj", "up_proj"), "gate"),
}
"""What PEFT saved with transformers 4: container, layers of an expert, router."""


def save_one_by_one(family: str, base: Path, out: Path, **config: Any) -> Path:
    """Writes an adapter of every expert by itself, as PEFT saved it with transformers 4."""
    container, layers, router = ONE_BY_ONE[family]
    random = torch.Generator().manual_seed(4)
    tensors: dict[str, Tensor] = {}
    held = load_file(base / "model.safetensors")
    for name, weight in held.items():
        module = name.removesuffix(".weight")
        leaf = module.rpartition(".")[2]
        is_expert = f"{container}.experts." in name and leaf in layers
        if not (is_expert or module.endswith(f"{container}.{router}") or leaf == "q_proj"):
            continue
        out_features, in_features = weight.shape
        start = f"base_model.model.{module}"
        tensors[f"{start}.lora_A.weight"] = torch.randn(3, in_features, generator=random) * 0.2
        tensors[f"{start}.lora_B.weight"] = torch.randn(out_features, 3, generator=random) * 0.2
    out.mkdir()
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    document = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
        "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", router, *layers], "bias": "none",
        **config,
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(document))
    return out


@pytest.mark.parametrize("family", ONE_BY_ONE)
def test_experts_one_by_one_as_transformers_4_saved_them(
    family: str, base_of: BaseOf, tmp_path: Path
) -> None:
    adapter = save_one_by_one(family, base_of(family), tmp_path / "adapter")
    pair = Pair(family, base_of(family), adapter, tmp_path)
    check_against_peft(pair, merge(pair))


def turn(adapter: Path, family: str) -> None:
    """Writes the factors of experts the way round in which PEFT had them before 0.19.1.

    The update of an expert, `B·A`, is `(B'·A')ᵀ` with B' = Aᵀ and A' = Bᵀ.
    """
    tensors = load_file(adapter / WEIGHTS)
    experts = make_model(family).config.get_text_config().num_local_experts
    for name in [name for name in tensors if "experts" in name and "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        lora_a = tensors[name].view(experts, -1, tensors[name].shape[1])
        lora_b = tensors[other].view(tensors[other].shape[0], -1, experts)
        tensors[name] = lora_b.permute(2, 1, 0).reshape(-1, lora_b.shape[0]).contiguous()
        tensors[other] = lora_a.permute(2, 1, 0).reshape(lora_a.shape[2], -1).contiguous()
    save_file(tensors, adapter / WEIGHTS, {"format": "pt"})


def note_version(adapter: Path, version: str | None) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config.pop("peft_version")
    path.write_text(json.dumps(config | ({"peft_version": version} if version else {})))


@pytest.mark.parametrize("version", ["0.18.1", None, "0.19.0"])
def test_factors_that_older_releases_of_peft_had_the_other_way_round(
    version: str | None, base_of: BaseOf, tmp_path: Path
) -> None:
    pair = save_pair("mixtral", base_of("mixtral"), tmp_path, target_parameters=EXPERTS)
    new = load_file(merge(pair) / "model.safetensors")
    turn(pair.adapter, "mixtral")
    note_version(pair.adapter, version)
    old = load_file(merge(pair, tmp_path / "old") / "model.safetensors")
    for name, tensor in new.items():
        torch.testing.assert_close(old[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("version", "turned"),
    [("0.18.1", False), (None, False), ("0.19.0", True), ("0.19.1", False), ("0.21.2", False)],
)
def test_square_experts_are_taken_as_their_release_of_peft_took_them(
    version: str | None, turned: bool, base_of: BaseOf, tmp_path: Path
) -> None:
    family = "gpt-oss square"
    pair = save_pair(family, base_of(family), tmp_path, target_parameters=["experts.down_proj"])
    new = load_file(merge(pair) / "model.safetensors")
    if turned:
        turn(pair.adapter, family)
    note_version(pair.adapter, version)
    old = load_file(merge(pair, tmp_path / "old") / "model.safetensors")
    for name, tensor in new.items():
        torch.testing.assert_close(old[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss"])
def test_half_precision_is_as_close_to_the_truth_as_peft_s(family: str, tmp_path: Path) -> None:
    base = save_base(family, tmp_path / "base", torch.bfloat16)
    pair = save_pair(family, base, tmp_path, target_parameters=EXPERTS)
    truth_folder, peft_folder = tmp_path / "truth", tmp_path / "peft"
    load_tuned(family, base, pair.adapter).merge_and_unload().save_pretrained(truth_folder)
    tuned = load_tuned(family, base, pair.adapter).to(torch.bfloat16)
    tuned.merge_and_unload().save_pretrained(peft_folder)
    truth, theirs, ours = (
        load_file(folder / "model.safetensors")
        for folder in (truth_folder, peft_folder, merge(pair))
    )
    names = [name for name in truth if "experts" in name and "bias" not in name]
    assert names
    for name in names:
        error = (ours[name].double() - truth[name].double()).abs()
        assert ours[name].dtype == torch.bfloat16
        assert error.mean() <= (theirs[name].double() - truth[name].double()).abs().mean()
        nearest = (truth[name].bfloat16().double() - truth[name].double()).abs()
        assert bool((error <= nearest * (1 + 1e-3) + 1e-6).all()), name


def refusal(pair: Pair) -> str:
    with pytest.raises(LorapackError) as refused:
        merge(pair)
    error = refused.value
    assert isinstance(error, RejectedPlanError)
    assert not (pair.folder / "merged").exists()
    return str(error)


def test_a_base_without_one_of_its_experts_is_refused(tmp_path: Path) -> None:
    base = save_base("mixtral", tmp_path / "base")
    pair = save_pair("mixtral", base, tmp_path, target_parameters=EXPERTS)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    text = refusal(pair)
    assert "'model.layers.1.mlp.experts.gate_up_proj', which cannot be found in the base" in text


def test_a_pair_that_no_parameter_belongs_to_is_refused(base_of: BaseOf, tmp_path: Path) -> None:
    pair = save_pair("mixtral", base_of("mixtral"), tmp_path, target_parameters=EXPERTS)
    path = pair.adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_parameters": ["experts.gate_up_proj"]}))
    text = refusal(pair)
    assert "which parameters of 'model.layers.0.mlp.experts' the adapter was trained on" in text


def test_factors_of_another_base_are_refused(base_of: BaseOf, tmp_path: Path) -> None:
    pair = save_pair("mixtral", base_of("mixtral"), tmp_path, target_parameters=EXPERTS)
    path = pair.adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"r": 4}))
    text = refusal(pair)
    assert "expected rank 4 for each of 4 matrices of 32 × 48" in text


def test_rslora_on_experts_one_by_one_is_refused(base_of: BaseOf, tmp_path: Path) -> None:
    adapter = save_one_by_one("mixtral", base_of("mixtral"), tmp_path / "adapter", use_rslora=True)
    text = refusal(Pair("mixtral", base_of("mixtral"), adapter, tmp_path))
    assert "√2 times the scale" in text


def test_a_family_whose_names_are_not_known_is_refused_by_name(
    base_of: BaseOf, tmp_path: Path
) -> None:
    base = save_base("mixtral", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "minimax_m3_vl",
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
    }
    pair = save_pair("mixtral", base, tmp_path, target_modules=["q_proj"])
    (base / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    renamed = {name.replace("self_attn", "attn"): tensor for name, tensor in tensors.items()}
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    assert "for 'minimax_m3_vl' this version does not know" in refusal(pair)


def test_an_expert_that_diverged_is_named(base_of: BaseOf, tmp_path: Path) -> None:
    pair = save_pair("gpt-oss", base_of("gpt-oss"), tmp_path, target_parameters=EXPERTS)
    tensors = load_file(pair.adapter / WEIGHTS)
    name = "base_model.model.model.layers.1.mlp.experts.lora_B.weight"
    tensors[name][5, 7] = float("nan")
    save_file(tensors, pair.adapter / WEIGHTS, {"format": "pt"})
    with pytest.raises(LorapackError, match="holds NaN or infinity"):
        merge(pair)
    assert not (tmp_path / "merged").exists()


def test_the_base_answers_otherwise_than_the_merged_model(base_of: BaseOf, tmp_path: Path) -> None:
    pair = save_pair("qwen3-moe", base_of("qwen3-moe"), tmp_path, target_parameters=EXPERTS)
    difference = answer(load("qwen3-moe", merge(pair))) - answer(load("qwen3-moe", pair.base))
    assert float(difference.norm()) > 1


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_a_release_proves_every_expert(family: str, base_of: BaseOf, tmp_path: Path) -> None:
    targets = [*EXPERTS, ROUTERS.get(family, "mlp.gate.weight")]
    pair = save_pair(family, base_of(family), tmp_path, target_parameters=targets)
    options = ReleaseOptions(targets=("merged",), license="mit")
    made = release(
        ReleaseRequest(
            ((None, pair.adapter),), tmp_path / "out", base=str(pair.base), options=options
        ),
        Silent(),
    )
    parsed = parse_plan(render_plan(made.plan), where="plan")
    assert parsed == made.plan
    proof = made.proof.targets[0]
    assert proof.weights is not None
    assert proof.behaviour is not None
    assert not proof.problems
    stacked = 2 * 2 if family == "gpt-oss" else 2 * 4 * 3
    assert proof.weights.by_rule["expert-lora"] == (stacked, stacked)
    assert proof.weights.by_rule["lora"] == (2, 2)
    tensors = len(load_file(pair.adapter / WEIGHTS))
    assert proof.weights.adapter_tensors_used == proof.weights.adapter_tensors_total == tensors
    bundle = tmp_path / "out"
    again = verify_bundle(bundle, level="weights", base=None, progress=Silent())
    assert not any(target.problems for target in again.targets)
    folder = bundle / "merged/adapter"
    damaged = change_one_value(folder / "model.safetensors")
    sources = Sources(read_base(pair.base), {"adapter": refs_of(pair.adapter)})
    check = check_weights(made.plan.targets[0].tensors, read_base(folder), sources)
    assert len(check.problems) == 1
    assert check.problems[0].startswith(f"{damaged} is not base + adapter")


def refs_of(adapter: Path) -> dict[str, TensorRef]:
    return {ref.name: ref for ref in read_header(adapter / WEIGHTS).tensors}


def change_one_value(path: Path) -> str:
    """Changes a value of the last expert, and returns the name of its tensor."""
    tensors = load_file(path)
    name = max(name for name in tensors if "experts" in name and "bias" not in name)
    tensors[name].view(-1)[-1] += 0.01
    save_file(tensors, path, {"format": "pt"})
    return name
