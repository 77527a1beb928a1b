"""Adapters of other tuners from the folder to a proved bundle, against PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from packager.errors import LorapackError, RejectedPlanError
from packager.gguf import pretokenizer
from packager.gguf.tokenizerdocument import check_encodings, open_tokenizer
from packager.gguf.tokenizerfile import list_tokenizer_files
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest, plan_request
from packager.progress import Silent
from packager.release import Release, release
from packager.verify.bundle import verify_bundle
from tests.merge.conftest import read_tensors
from tests.tuner.base import make_gpt2, make_qwen2
from tests.tuner.cases import MERGED, Tuned, make_tuned

MakeBase = Callable[[str, str], Path]
RELEASED = (
    "LOHA", "IA3", "OFT", "UNILORA", "VERA", "OSF", "LN_TUNING", "GLORA", "TINYLORA",
    "TRAINABLE_TOKENS",
)  # fmt: skip
HALF_ULP = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> MakeBase:
    """Makes a base once for each (family, dtype)."""
    made: dict[tuple[str, str], Path] = {}
    makers: dict[str, Callable[..., Path]] = {"qwen2": make_qwen2, "gpt2": make_gpt2}

    def make(family: str, dtype: str) -> Path:
        if (family, dtype) not in made:
            folder = tmp_path_factory.mktemp("base") / f"{family}-{dtype}"
            made[family, dtype] = makers[family](folder, dtype=dtype)
        return made[family, dtype]

    return make


def make_release(case: Tuned, out: Path, *targets: Any, **options: Any) -> Release:
    request = ReleaseRequest(
        adapters=(("tuned", case.folder),),
        out=out,
        base=str(case.base),
        options=ReleaseOptions(targets=targets, **options),
        behaviour="merged" in targets,
    )
    return release(request, Silent())


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def check_as_close_as_peft(case: Tuned, merged: Path, dtype: str) -> None:
    """Every tensor within half a unit of PEFT's float32 merge; the logits those of the adapter."""
    truth = PeftModel.from_pretrained(load(case.base), case.folder).merge_and_unload().state_dict()
    found, base = read_tensors(merged), read_tensors(case.base)
    assert found.keys() == base.keys()
    for name, value in found.items():
        assert value.dtype == getattr(torch, dtype)
        wanted = truth[name if name in truth else f"transformer.{name}"].double()
        largest = float(wanted.abs().max())
        slack = HALF_ULP[dtype] * wanted.abs() * 1.001 + 2.0**-18 * largest
        assert bool(((value.double() - wanted).abs() <= slack).all()), name
    tokens = torch.arange(4, 100).view(4, 24)
    with torch.inference_mode():
        expected = PeftModel.from_pretrained(load(case.base), case.folder)(tokens).logits.double()
        plain = load(case.base)(tokens).logits.double()
        ours = load(merged)(tokens).logits.double()
    effect = (plain - expected).norm()
    assert effect > 0.004 * expected.norm()
    lost = {"bfloat16": 0.2, "float16": 0.03, "float32": 1e-4}[dtype]
    # Two ways through the model in float32 differ by a few roundings of the answer itself.
    noise = 2.0**-20 * expected.norm()
    assert (ours - expected).norm() <= lost * effect + noise


@pytest.mark.parametrize("tuner", RELEASED)
def test_a_release_is_as_close_to_the_truth_as_peft(
    tuner: str, bases: MakeBase, tmp_path: Path
) -> None:
    dtype = ("float32", "bfloat16", "float16")[RELEASED.index(tuner) % 3]
    case = make_tuned(bases("qwen2", dtype), tmp_path / "tuned", tuner, **MERGED[tuner])
    made = make_release(case, tmp_path / "out", "merged")
    check_as_close_as_peft(case, made.bundle / "merged" / "tuned", dtype)
    proof = made.proof.targets[0]
    assert proof.weights is not None
    assert not proof.weights.problems
    rule = "tokens" if tuner == "TRAINABLE_TOKENS" else tuner.lower()
    assert rule in proof.weights.by_rule
    assert proof.weights.adapter_tensors_used == proof.weights.adapter_tensors_total
    assert proof.behaviour is not None
    assert not proof.behaviour.problems
    again = verify_bundle(made.bundle, level="weights", base=None, progress=Silent())
    assert not again.targets[0].problems
    assert again.targets[0].weights is not None
    assert again.targets[0].weights.checked == again.targets[0].weights.total


@pytest.mark.parametrize(("tuner", "bias"), [("GLORA", "all"), ("VERA", "vera_only")])
def test_biases_that_were_trained_beside_a_tuner_come_along(
    tuner: str, bias: str, bases: MakeBase, tmp_path: Path
) -> None:
    """GLoRA changes biases, too: those that were trained, not the base's."""
    arguments = {**MERGED[tuner], "bias": bias}
    case = make_tuned(bases("qwen2", "float32"), tmp_path / "tuned", tuner, **arguments)
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
    assert name in read_tensors(case.folder)
    made = make_release(case, tmp_path / "out", "merged")
    check_as_close_as_peft(case, made.bundle / "merged" / "tuned", "float32")
    proof = made.proof.targets[0].weights
    assert proof is not None
    assert any(rule.startswith("saved") for rule in proof.by_rule)


@pytest.mark.parametrize("tuner", ["IA3", "VERA", "FOURIERFT", "WAVEFT", "RANDLORA"])
def test_layers_that_are_stored_the_other_way_round(
    tuner: str, bases: MakeBase, tmp_path: Path
) -> None:
    modules = ["c_attn", "c_fc", "mlp.c_proj"]
    arguments = {**MERGED[tuner], "target_modules": modules, "fan_in_fan_out": True}
    if tuner == "IA3":
        arguments["feedforward_modules"] = ["mlp.c_proj"]
    case = make_tuned(bases("gpt2", "float32"), tmp_path / "tuned", tuner, **arguments)
    made = make_release(case, tmp_path / "out", "merged")
    check_as_close_as_peft(case, made.bundle / "merged" / "tuned", "float32")


def test_gguf_gets_the_same_rows(
    bases: MakeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases("qwen2", "bfloat16")
    files = list_tokenizer_files(base)
    ids = next(check_encodings(open_tokenizer(files), files))
    known = {**pretokenizer.NAMES, pretokenizer.hash_ids(ids): "gpt-2"}
    monkeypatch.setattr(pretokenizer, "NAMES", known)
    case = make_tuned(base, tmp_path / "tuned", "IA3", **MERGED["IA3"])
    made = make_release(case, tmp_path / "out", "ollama", quants=("F32",))
    proof = made.proof.targets[0]
    assert not proof.problems
    truth = case.load().merge_and_unload().state_dict()
    reader = GGUFReader(made.bundle / "ollama" / "tuned" / "tuned-F32.gguf")
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    pairs = {
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.1.ffn_up.weight": "model.layers.1.mlp.up_proj.weight",
        "blk.1.attn_v.bias": "model.layers.1.self_attn.v_proj.bias",
    }
    for ours, theirs in pairs.items():
        wanted: Tensor = truth[theirs]
        assert torch.allclose(found[ours].view(wanted.shape), wanted, rtol=0, atol=1e-6), ours


def test_a_classifier_s_saved_head_comes_along(bases: MakeBase, tmp_path: Path) -> None:
    case = make_tuned(
        bases("qwen2", "float32"),
        tmp_path / "tuned",
        "LOHA",
        r=4,
        modules_to_save=["lm_head"],
    )
    made = make_release(case, tmp_path / "out", "merged")
    check_as_close_as_peft(case, made.bundle / "merged" / "tuned", "float32")
    assert "saved" in made.proof.targets[0].weights.by_rule  # type: ignore[union-attr]


def refused(case: Tuned, out: Path) -> tuple[LorapackError, ...]:
    with pytest.raises(RejectedPlanError) as caught:
        make_release(case, out, "merged")
    assert not out.exists()
    return caught.value.problems


def test_what_cannot_be_merged_is_refused_before_a_byte_is_written(
    bases: MakeBase, tmp_path: Path
) -> None:
    base = bases("qwen2", "float32")
    lily = make_tuned(base, tmp_path / "lily", "LILY", r=4)
    (problem,) = refused(lily, tmp_path / "out")
    assert "'lily'" in problem.what
    assert "routed" in problem.what
    assert problem.hint == "keep the adapter separate: --target adapter"
    beft = make_tuned(base, tmp_path / "beft", "BEFT")
    problems = refused(beft, tmp_path / "out")
    assert any("Base layer has no bias" in problem.found for problem in problems)


def test_an_unknown_tuner_is_named(bases: MakeBase, tmp_path: Path) -> None:
    case = make_tuned(bases("qwen2", "float32"), tmp_path / "tuned", "LOHA", r=4)
    path = case.folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "peft_type": "FROM_TOMORROW"}), encoding="utf-8")
    (problem,) = refused(case, tmp_path / "out")
    assert "does not know the tuner 'FROM_TOMORROW'" in problem.found
    path.write_text(json.dumps({**config, "sharpness": 0.5}), encoding="utf-8")
    (problem,) = refused(case, tmp_path / "out")
    assert "does not know the field 'sharpness'" in problem.found


def test_tensors_of_another_base_are_named(bases: MakeBase, tmp_path: Path) -> None:
    case = make_tuned(bases("qwen2", "float32"), tmp_path / "tuned", "LOHA", r=4)
    other = Tuned(bases("gpt2", "float32"), case.folder)
    problems = refused(other, tmp_path / "out")
    assert "belong to no module of the base" in problems[0].what


def test_a_plan_names_the_tuner_for_each_tensor(bases: MakeBase, tmp_path: Path) -> None:
    case = make_tuned(bases("qwen2", "float32"), tmp_path / "tuned", "VERA", **MERGED["VERA"])
    request = ReleaseRequest(
        adapters=(("tuned", case.folder),),
        out=tmp_path / "out",
        base=str(case.base),
        options=ReleaseOptions(targets=("merged",)),
    )
    plan = plan_request(request, Silent()).plan
    rules = {tensor.name: tensor.rule for tensor in plan.targets[0].tensors}
    assert rules["model.layers.1.mlp.up_proj.weight"] == "vera"
    assert rules["model.layers.1.mlp.gate_proj.weight"] == "copy"
    used = [name for tensor in plan.targets[0].tensors for _, name in tensor.adapter_tensors]
    assert used.count("base_model.vera_A") == 1
    assert sorted(used) == sorted(read_tensors(case.folder))
    assert math.isclose(plan.output_bytes, plan.targets[0].nbytes)
