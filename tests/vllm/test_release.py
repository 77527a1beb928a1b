"""`--target vllm`: what stands in the folder computes what was trained, and is proven to."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, load_file, save
from torch import Tensor
from transformers import AutoModelForCausalLM

from packager.errors import ProofError
from packager.plan import ReleaseOptions
from packager.plan.serving import FOLDER
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import Release, release
from packager.serving.answer import parse_expected
from packager.serving.document import parse_gate, parse_serve_yaml
from packager.verify.bundle import verify_bundle
from packager.verify.proof import Proof
from tests.models import make_adapter, make_llama
from tests.vllm.folder import change_file, load_in_vllm, make_bundle
from tests.vllm_engine import keep_vllm

GATE = Path(__file__).parents[2] / "docker" / "gate"
OPTIONS = ReleaseOptions(targets=("vllm",))
PATTERNS: dict[str, Any] = {
    "r": 6,
    "lora_alpha": 5,
    "use_rslora": True,
    "rank_pattern": {"layers.0.self_attn.q_proj": 3},
    "alpha_pattern": {"up_proj": 11},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("base") / "small-base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One as plain as can be; one whose scales loaders disagree about."""
    root = tmp_path_factory.mktemp("adapters")
    plain = make_adapter(base, root / "plain", r=8, lora_alpha=16)
    return {"plain": plain, "scaled": make_adapter(base, root / "scaled", seed=2, **PATTERNS)}


@pytest.fixture(scope="module")
def made(
    base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Release:
    return make_bundle(base, tmp_path_factory.mktemp("made") / "bundle", OPTIONS, **adapters)


@pytest.fixture
def bundle(made: Release, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made.bundle, tmp_path / "bundle"))


def delta_weights(base: Path, adapter: Path) -> dict[str, Tensor]:
    """ΔW of every module by PEFT, float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, adapter)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in tuned.named_modules()
        if hasattr(module, "lora_A")
    }


def problems_of(proof: Proof, name: str) -> list[str]:
    return [line for item in proof.targets if item.name == name for line in item.problems]


def test_the_folder_holds_one_server(made: Release) -> None:
    folder = made.bundle / FOLDER
    flags = parse_serve_yaml((folder / "serve.yaml").read_text(), where="serve.yaml")
    assert (flags["max-lora-rank"], flags["max-loras"]) == (8, 2)
    gate = parse_gate((folder / "gate.json").read_text(), where="gate.json")
    assert [item.name for item in gate.models] == ["small-base", "plain", "scaled"]
    expected = parse_expected((folder / "expected.json").read_text(), where="expected.json")
    assert [item.name for item in expected.models] == ["small-base", "plain", "scaled"]
    assert expected.served_dtype == "bfloat16"
    assert (folder / "gate/lorapack_gate/__init__.py").read_bytes() == (
        GATE / "lorapack_gate/__init__.py"
    ).read_bytes()
    assert (folder / "LICENSE").read_text() == "Text of apache-2.0.\n"
    listed = {entry.path for entry in made.manifest.files}
    there = {path.relative_to(made.bundle).as_posix() for path in folder.rglob("*") if
             path.is_file()}  # fmt: skip
    assert there <= listed


def test_everybody_may_read_every_file(made: Release) -> None:
    modes = {path.stat().st_mode & 0o444 for path in (made.bundle / FOLDER).rglob("*")}
    assert modes == {0o444}


def test_the_original_stands_beside_the_normalised(
    made: Release, adapters: dict[str, Path]
) -> None:
    for name, adapter in adapters.items():
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            kept = made.bundle / FOLDER / "originals" / name / file
            assert kept.read_bytes() == (adapter / file).read_bytes()


def test_a_plain_adapter_keeps_its_values_and_its_scale(
    made: Release, adapters: dict[str, Path]
) -> None:
    served = made.bundle / FOLDER / "adapters/plain"
    trained, found = (load_file(place / "adapter_model.safetensors") for place in
                      (adapters["plain"], served))  # fmt: skip
    assert trained.keys() == found.keys()
    assert all(torch.equal(trained[name], found[name]) for name in trained)
    config = json.loads((served / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 16, False)
    assert config["base_model_name_or_path"] == "small-base"


def test_scales_that_loaders_disagree_about_are_folded_in(made: Release) -> None:
    config = json.loads((made.bundle / FOLDER / "adapters/scaled/adapter_config.json").read_text())
    told = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    assert [config[key] for key in told] == [6, 6, False, {}, {}]


@pytest.mark.parametrize("name", ["plain", "scaled"])
def test_peft_computes_what_was_trained(
    base: Path, made: Release, adapters: dict[str, Path], name: str
) -> None:
    trained = delta_weights(base, adapters[name])
    served = delta_weights(base, made.bundle / FOLDER / "adapters" / name)
    assert trained.keys() == served.keys()
    for module, delta in trained.items():
        gap = (served[module].double() - delta.double()).norm() / delta.double().norm()
        # PEFT multiplies in float32 itself, B·A first and the scale afterwards.
        assert float(gap) < 2**-22, module


def test_vllm_computes_what_was_trained(
    base: Path, made: Release, adapters: dict[str, Path], tmp_path: Path
) -> None:
    for name, adapter in adapters.items():
        trained = delta_weights(base, adapter)
        modules = {module.rpartition(".")[2] for module in trained}
        served = load_in_vllm(
            keep_vllm(), made.bundle / FOLDER / "adapters" / name, tmp_path / f"{name}", modules
        )
        assert served.keys() == trained.keys()
        for module, delta in trained.items():
            gap = (served[module] - delta.double()).norm() / delta.double().norm()
            assert float(gap) < 2**-22, module


def test_the_manifest_shows_how_far_the_normalised_form_is(made: Release) -> None:
    found = {item.name: item.delta_difference for item in made.manifest.targets}
    assert found["plain"] == 0
    assert found["scaled"] is not None
    assert 0 < found["scaled"] <= 2**-24


def test_the_answers_are_those_of_peft(
    base: Path, made: Release, adapters: dict[str, Path]
) -> None:
    """Asked one by one, without the proof's batches."""
    expected = parse_expected((made.bundle / FOLDER / "expected.json").read_text(), where="")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, adapters["scaled"]).eval()
    found = next(item for item in expected.models if item.name == "scaled")
    for question in found.questions:
        ids = torch.tensor([question.prompt])
        with torch.inference_mode():
            own = torch.log_softmax(tuned(ids).logits[0, -1].double(), -1)
            with tuned.disable_adapter():
                alone = torch.log_softmax(tuned(ids).logits[0, -1].double(), -1)
        best = own.topk(len(question.tokens))
        torch.testing.assert_close(
            best.values, torch.tensor(question.logprobs, dtype=torch.float64), atol=1e-4, rtol=0
        )
        wanted = torch.tensor(question.base, dtype=torch.float64)
        torch.testing.assert_close(alone[list(question.tokens)], wanted, atol=1e-4, rtol=0)


def test_the_gate_judges_by_the_same_figures(
    made: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arithmetic is another program's: with the base's own answers it gives the effect."""
    monkeypatch.setattr(sys, "path", [str(GATE), *sys.path])
    from lorapack_gate.expected import parse_expected as parse
    from lorapack_gate.judge import judge, mean_divergence

    raw = json.loads((made.bundle / FOLDER / "expected.json").read_text())
    ours = parse_expected(json.dumps(raw), where="")
    for model, theirs in zip(ours.models[1:], parse(raw).models[1:], strict=True):
        base = [dict(zip(item.tokens, item.base, strict=True)) for item in model.questions]
        right = [dict(zip(item.tokens, item.logprobs, strict=True)) for item in model.questions]
        assert mean_divergence(theirs.questions, base) == pytest.approx(model.effect, rel=1e-3)
        assert judge(theirs, right, base).reason == ""
        assert "answers as the base does" in judge(theirs, base, base).reason


def test_the_card_tells_how_to_ask_each_model(made: Release) -> None:
    card = (made.bundle / FOLDER / "README.md").read_text()
    for name in ("plain", "scaled"):
        assert f"### {name}\n" in card
        assert f'chat.completions.create(model="{name}"' in card
    assert "vLLM 0.32.0" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {7}


def test_a_finished_bundle_is_verified(made: Release, base: Path) -> None:
    proof = verify_bundle(made.bundle, level="behaviour", base=str(base), progress=Silent())
    assert [(item.target, item.name) for item in proof.targets] == [
        ("vllm", "plain"), ("vllm", "scaled"),
    ]  # fmt: skip
    for target in proof.targets:
        assert target.problems == ()
        assert target.behaviour is not None
        assert target.behaviour.kl_mean < 1e-9
        assert target.behaviour.base_kl_mean > 1e-2


def test_a_changed_adapter_is_found_by_its_weights(bundle: Path, base: Path) -> None:
    def double(raw: bytes) -> bytes:
        tensors = load(raw)
        name = next(name for name in tensors if "lora_B" in name)
        return save({**tensors, name: tensors[name] * 2}, metadata={"format": "pt"})

    change_file(bundle, f"{FOLDER}/adapters/scaled/adapter_model.safetensors", double)
    proof = verify_bundle(bundle, level="weights", base=str(base), progress=Silent())
    assert any("makes another ΔW" in line for line in problems_of(proof, "scaled"))
    assert problems_of(proof, "plain") == []


def test_another_scale_in_the_configuration_is_found(bundle: Path, base: Path) -> None:
    path = f"{FOLDER}/adapters/plain/adapter_config.json"
    change_file(bundle, path, lambda raw: raw.replace(b'"lora_alpha": 16', b'"lora_alpha": 17'))
    proof = verify_bundle(bundle, level="weights", base=str(base), progress=Silent())
    assert any("makes another ΔW" in line for line in problems_of(proof, "plain"))


def test_another_original_is_found(bundle: Path, base: Path) -> None:
    path = f"{FOLDER}/originals/plain/adapter_config.json"
    change_file(bundle, path, lambda raw: raw + b"\n")
    proof = verify_bundle(bundle, level="weights", base=str(base), progress=Silent())
    assert any("is not the file as trained" in line for line in problems_of(proof, "plain"))


def test_other_answers_are_found(bundle: Path, base: Path) -> None:
    def swap(raw: bytes) -> bytes:
        document = json.loads(raw)
        for question in document["models"][1]["questions"]:
            question["top"], question["base"] = (
                [[token, logprob] for (token, _), logprob in
                 zip(question["top"], question["base"], strict=True)],
                [logprob for _, logprob in question["top"]],
            )  # fmt: skip
        return json.dumps(document).encode()

    change_file(bundle, f"{FOLDER}/expected.json", swap)
    proof = verify_bundle(bundle, level="behaviour", base=str(base), progress=Silent())
    assert problems_of(proof, "plain") == [
        "the answers recorded for plain are not those of base + adapter"
    ]
    assert problems_of(proof, "scaled") == []


def test_a_wider_bound_is_found(bundle: Path, base: Path) -> None:
    def widen(raw: bytes) -> bytes:
        document = json.loads(raw)
        document["models"][2]["kl_bound"] *= 10
        return json.dumps(document).encode()

    change_file(bundle, f"{FOLDER}/expected.json", widen)
    proof = verify_bundle(bundle, level="behaviour", base=str(base), progress=Silent())
    assert problems_of(proof, "scaled") == ["the bound recorded for scaled is not the one of "
                                            "bfloat16"]  # fmt: skip


def test_an_effect_too_small_to_be_seen_is_refused(base: Path, tmp_path: Path) -> None:
    weak = make_adapter(base, tmp_path / "weak", lora_alpha=0.01)
    with pytest.raises(ProofError, match="cannot be told from what bfloat16 does") as caught:
        make_bundle(base, tmp_path / "out", OPTIONS, weak=weak)
    assert "--dtype float32" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_proof_says_so(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    request = ReleaseRequest(
        (("plain", adapters["plain"]),), tmp_path / "out", base=str(base), options=OPTIONS,
        behaviour=False,
    )  # fmt: skip
    folder = release(request, Silent()).bundle / FOLDER
    assert parse_gate((folder / "gate.json").read_text(), where="").expected is None
    assert not (folder / "expected.json").exists()
    assert "released without a proof of behaviour" in (folder / "README.md").read_text()


def test_a_baked_base_is_part_of_the_folder(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    options = ReleaseOptions(targets=("vllm",), bake_base=True)
    request = ReleaseRequest(
        (("plain", adapters["plain"]),), tmp_path / "out", base=str(base), options=options,
        behaviour=False,
    )  # fmt: skip
    folder = release(request, Silent()).bundle / FOLDER
    kept = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    origin = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert all(map(torch.equal, kept.state_dict().values(), origin.state_dict().values()))
    assert (folder / "base/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_server_answers_on_the_base_as_it_is_stored(
    base: Path, adapters: dict[str, Path], made: Release, tmp_path: Path
) -> None:
    """However training saw it: the server loads nothing else."""
    options = ReleaseOptions(targets=("vllm",), loaded_in="nf4", merge_base="dequantized")
    other = make_bundle(base, tmp_path / "out", options, plain=adapters["plain"])
    texts = [
        parse_expected((item.bundle / FOLDER / "expected.json").read_text(), where="")
        for item in (made, other)
    ]
    assert texts[0].models[:2] == texts[1].models
    proof = verify_bundle(other.bundle, level="behaviour", base=str(base), progress=Silent())
    assert problems_of(proof, "plain") == []
