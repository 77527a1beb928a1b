"""`--target merged --target vllm`: what vLLM refuses is served merged, by a server beside it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from packager.digest import hash_file
from packager.errors import ProofError
from packager.plan import ReleaseOptions
from packager.plan.serving import FOLDER
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import Release, release
from packager.serving.answer import Expected, parse_expected
from packager.serving.document import GateConfig, parse_gate, parse_serve_yaml
from packager.verify.bundle import verify_bundle
from tests.models import make_adapter, make_llama
from tests.vllm.folder import change_file, make_bundle

GATE = Path(__file__).parents[2] / "docker" / "gate"
OPTIONS = ReleaseOptions(targets=("merged", "vllm"))
BAKED = ReleaseOptions(targets=("merged", "vllm"), bake_base=True)
DORA = f"{FOLDER}/models/dora"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("base") / "small-base")


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One that vLLM serves on the base, and one that it refuses."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "plain": make_adapter(base, root / "plain", r=8, lora_alpha=16),
        "dora": make_adapter(base, root / "dora", seed=2, use_dora=True),
    }


@pytest.fixture(scope="module")
def made(
    base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Release:
    return make_bundle(base, tmp_path_factory.mktemp("made") / "bundle", BAKED, **adapters)


@pytest.fixture(scope="module")
def alone(
    base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Release:
    """A release in which no adapter can be served on the base."""
    out = tmp_path_factory.mktemp("alone") / "bundle"
    return make_bundle(base, out, OPTIONS, dora=adapters["dora"])


@pytest.fixture
def bundle(made: Release, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made.bundle, tmp_path / "bundle"))


def gate_of(folder: Path) -> GateConfig:
    return parse_gate((folder / "gate.json").read_bytes(), where="gate.json")


def flags_of(folder: Path) -> dict[str, Any]:
    return parse_serve_yaml((folder / "serve.yaml").read_text(), where="serve.yaml")


def expected_of(folder: Path) -> Expected:
    return parse_expected((folder / "expected.json").read_bytes(), where="expected.json")


def problems_of(bundle: Path, base: Path) -> dict[str, list[str]]:
    proof = verify_bundle(bundle, level="behaviour", base=str(base), progress=Silent())
    return {item.name: list(item.problems) for item in proof.targets if item.target == "vllm"}


def test_the_merged_model_has_a_server_of_its_own(made: Release) -> None:
    front, beside = made.bundle / FOLDER, made.bundle / DORA
    assert flags_of(front)["lora-modules"] == (
        '{"name": "plain", "path": "adapters/plain", "base_model_name": "small-base"}',
    )
    flags = flags_of(beside)
    assert (flags["model"], flags["served-model-name"]) == ("base", ("dora",))
    assert "enable-lora" not in flags
    assert flags["gpu-memory-utilization"] + flags_of(front)["gpu-memory-utilization"] <= 0.9
    gate = gate_of(front)
    assert [model.name for model in gate.all_models] == ["small-base", "plain", "dora"]
    (neighbour,) = gate.neighbours
    assert neighbour.url == "http://small-base-dora:8000"
    assert neighbour.models == gate_of(beside).models
    found = [(item.target, item.name, item.path) for item in made.manifest.targets]
    assert found == [
        ("merged", "plain", "merged/plain"), ("vllm", "plain", FOLDER),
        ("merged", "dora", "merged/dora"), ("vllm", "dora", DORA),
    ]  # fmt: skip


def test_the_gate_that_is_shipped_reads_both(
    made: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(GATE), *sys.path])
    from lorapack_gate.setting import read_setting

    unkeyed = {"LORAPACK_INSECURE_NO_AUTH": "1"}
    front = read_setting(unkeyed, made.bundle / FOLDER)
    beside = read_setting(unkeyed, made.bundle / DORA)
    assert [model.name for model in front.models][:2] == ["small-base", "plain"]
    assert (beside.base, [model.kind for model in beside.models]) == ("", ["merged"])
    assert beside.expected is not None
    assert [model.name for model in beside.expected.models] == ["dora"]


def test_a_baked_model_is_the_merged_one(made: Release) -> None:
    merged, baked = made.bundle / "merged/dora", made.bundle / DORA / "base"
    names = sorted(path.name for path in merged.iterdir())
    assert names == sorted(path.name for path in baked.iterdir())
    assert all(hash_file(merged / name) == hash_file(baked / name) for name in names)
    listed = {entry.path for entry in made.manifest.files}
    assert {f"{DORA}/base/{name}" for name in names} <= listed
    assert (made.bundle / FOLDER / "base/config.json").is_file()


@pytest.mark.parametrize("where", ["beside", "alone"])
def test_the_answers_are_those_of_peft(
    base: Path, made: Release, alone: Release, adapters: dict[str, Path], where: str
) -> None:
    """Asked one by one, of base + adapter and of the base: the server has none to compare with."""
    folder = made.bundle / DORA if where == "beside" else alone.bundle / FOLDER
    (found,) = expected_of(folder).models
    assert (found.name, found.kind) == ("dora", "merged")
    assert found.effect > 0.1
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, adapters["dora"]).eval()
    for question in found.questions:
        ids, tokens = torch.tensor([question.prompt]), list(question.tokens)
        with torch.inference_mode():
            own = torch.log_softmax(tuned(ids).logits[0, -1].double(), -1)
            with tuned.disable_adapter():
                other = torch.log_softmax(tuned(ids).logits[0, -1].double(), -1)
        assert tokens == own.topk(len(tokens)).indices.tolist()
        for answer, recorded in ((own, question.logprobs), (other, question.base)):
            wanted = torch.tensor(recorded, dtype=torch.float64)
            torch.testing.assert_close(answer[tokens], wanted, atol=1e-4, rtol=0)


def test_where_nothing_is_served_on_the_base_the_merged_model_is_in_front(alone: Release) -> None:
    folder = alone.bundle / FOLDER
    gate = gate_of(folder)
    assert (gate.base, gate.neighbours) == ("", ())
    assert [(model.name, model.kind) for model in gate.models] == [("dora", "merged")]
    assert "gpu-memory-utilization" not in flags_of(folder)
    assert not (folder / "models").exists()
    assert not (folder / "base").exists()


def test_finished_bundles_are_verified(base: Path, made: Release, alone: Release) -> None:
    proof = verify_bundle(made.bundle, level="behaviour", base=str(base), progress=Silent())
    found = {(item.target, item.name): item for item in proof.targets}
    assert all(item.problems == () for item in proof.targets)
    behaviour = found["vllm", "dora"].behaviour
    assert behaviour is not None
    assert behaviour == found["merged", "dora"].behaviour
    assert problems_of(alone.bundle, base) == {"dora": []}


def _swap(document: dict[str, Any]) -> None:
    """The base's answers for those of base + adapter."""
    for question in document["models"][0]["questions"]:
        told = [logprob for _, logprob in question["top"]]
        pairs = zip(question["top"], question["base"], strict=True)
        question["top"] = [[token, logprob] for (token, _), logprob in pairs]
        question["base"] = told


def _widen(document: dict[str, Any]) -> None:
    document["models"][0]["kl_bound"] *= 10


def _rename(document: dict[str, Any]) -> None:
    document["models"][0]["name"] = "other"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_swap, "the answers recorded for dora are not those of base + adapter"),
        (_rename, "the answers recorded for dora are not those of base + adapter"),
        (_widen, "the bound recorded for dora is not the one of bfloat16"),
    ],
)
def test_other_answers_are_found(
    bundle: Path, base: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    def edit(raw: bytes) -> bytes:
        document = json.loads(raw)
        change(document)
        return json.dumps(document).encode()

    change_file(bundle, f"{DORA}/expected.json", edit)
    assert problems_of(bundle, base) == {"plain": [], "dora": [problem]}


def test_another_model_in_its_place_is_found(bundle: Path, base: Path) -> None:
    other = (bundle / "merged/plain/model.safetensors").read_bytes()
    change_file(bundle, f"{DORA}/base/model.safetensors", lambda _: other)
    assert problems_of(bundle, base)["dora"] == [
        f"{DORA}/base/model.safetensors is not the merged model's"
    ]


def test_the_card_tells_how_to_ask_each_model(made: Release) -> None:
    card = (made.bundle / FOLDER / "README.md").read_text()
    assert card.startswith("# small-base with 1 adapter and 1 merged model\n")
    for name in ("plain", "dora"):
        assert f"### {name}\n" in card
        assert f'chat.completions.create(model="{name}"' in card
    assert "- `dora`: vLLM 0.32.0 cannot serve feature 'dora'" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert {line.count("|") for line in rows} == {7}


def test_an_effect_too_small_to_be_seen_is_refused(base: Path, tmp_path: Path) -> None:
    weak = make_adapter(base, tmp_path / "weak", lora_alpha=0.01, modules_to_save=["norm"])
    with pytest.raises(ProofError, match="cannot be told from what bfloat16 does"):
        make_bundle(base, tmp_path / "out", OPTIONS, weak=weak)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_proof_says_so(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    request = ReleaseRequest(
        tuple(adapters.items()), tmp_path / "out", base=str(base), options=OPTIONS, behaviour=False
    )
    folder = release(request, Silent()).bundle / FOLDER
    for place in (folder, folder / "models/dora"):
        assert gate_of(place).expected is None
        assert not (place / "expected.json").exists()


def test_by_default_everything_is_served_that_can_be(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """One too weak to be told from the base is not refused then, and not said to be proven."""
    weak = make_adapter(base, tmp_path / "weak", lora_alpha=0.01)
    out = tmp_path / "out"
    made = make_bundle(base, out, ReleaseOptions(), dora=adapters["dora"], weak=weak)
    found = {(item.target, item.name): item for item in made.proof.targets}
    assert [name for target, name in found if target == "vllm"] == ["dora", "weak"]
    assert "--dtype float32" in found["vllm", "weak"].skipped["behaviour"]
    folder = out / FOLDER
    assert gate_of(folder).expected is None
    assert "released without a proof of behaviour" in (folder / "README.md").read_text()
    assert problems_of(out, base) == {"dora": [], "weak": []}
