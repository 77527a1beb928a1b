"""Heads: what they are called, what is refused, and which programs have no use for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from packager.errors import RejectedPlanError
from packager.mergefolder import merge_to_folder
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest, plan_request
from packager.progress import Silent
from tests.task.conftest import LABELS, TRAINED, Case, Trained, release_it, train, write_base

_SHARD = 5 << 30


def merged_config(base: Path, adapter: Path, out: Path) -> dict[str, object]:
    merge_to_folder(str(base), adapter, out, _SHARD, Silent())
    document: dict[str, object] = json.loads((out / "config.json").read_text(encoding="utf-8"))
    return document


def copy_adapter(case: Case, out: Path) -> Path:
    return Path(shutil.copytree(case.adapter, out))


def test_labels_are_those_of_a_config_beside_the_adapter(
    make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("bert-classes")
    adapter = copy_adapter(case, tmp_path / "adapter")
    names = {"0": "gut", "1": "schlecht", "2": "🤷"}
    own = {"id2label": names, "problem_type": "multi_label_classification"}
    (adapter / "config.json").write_text(json.dumps(own), encoding="utf-8")
    config = merged_config(case.base, adapter, tmp_path / "out")
    assert config["id2label"] == names
    assert config["label2id"] == {"gut": 0, "schlecht": 1, "🤷": 2}
    assert config["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize(
    "own",
    [
        {"id2label": {"0": "one", "1": "two"}, "problem_type": "anything"},
        {"id2label": {"0": 1, "1": 2, "2": 3}},
        {"id2label": {"a": "b", "c": "d", "e": "f"}},
        {"id2label": ["a", "b", "c"]},
    ],
)
def test_labels_that_do_not_fit_the_head_are_not_taken(
    make_case: Callable[[str], Case], tmp_path: Path, own: dict[str, object]
) -> None:
    case = make_case("bert-classes")
    adapter = copy_adapter(case, tmp_path / "adapter")
    (adapter / "config.json").write_text(json.dumps(own), encoding="utf-8")
    config = merged_config(case.base, adapter, tmp_path / "out")
    assert config["id2label"] == {str(n): f"LABEL_{n}" for n in range(LABELS)}
    assert "problem_type" not in config


def test_a_classifier_s_own_labels_stay(make_case: Callable[[str], Case], tmp_path: Path) -> None:
    """An adapter on a base that is a classifier already: class, labels and head are its own."""
    case = make_case("bert-classes")
    names = {"0": "low", "1": "middle", "2": "high"}
    base = Path(shutil.copytree(case.merged, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": names, "label2id": {name: int(n) for n, name in names.items()}}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    adapter = train(case.trained, base, tmp_path / "adapter")
    found = merged_config(base, adapter, tmp_path / "out")
    assert found["id2label"] == names
    assert found["architectures"] == ["BertForSequenceClassification"]
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    assert set(before) == set(after)


def test_a_head_that_was_not_saved_is_refused(
    make_case: Callable[[str], Case], tmp_path: Path
) -> None:
    case = make_case("llama-classes")
    adapter = copy_adapter(case, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    kept = {name: item for name, item in load_file(path).items() if "score" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["modules_to_save"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RejectedPlanError) as refusal:
        merge_to_folder(str(case.base), adapter, tmp_path / "out", _SHARD, Silent())
    assert "neither in the base nor in the adapter: score or classifier" in str(refusal.value)
    assert "modules_to_save" in str(refusal.value.problems[0].hint)
    assert not (tmp_path / "out").exists()


def test_a_layer_before_the_head_that_peft_does_not_save_is_refused(tmp_path: Path) -> None:
    """DeBERTa's pooler is new in training, and PEFT saves `classifier` only."""
    trained = Trained(
        "DebertaV2ForMaskedLM", "DebertaV2Config",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "pooler_hidden_size": 32, "initializer_range": 0.15,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_dropout": 0.0},
        "SEQ_CLS", "AutoModelForSequenceClassification", "DebertaV2ForSequenceClassification",
        ("query_proj", "value_proj"),
    )  # fmt: skip
    base = write_base(trained, tmp_path / "base")
    lost = train(trained, base, tmp_path / "lost")
    with pytest.raises(RejectedPlanError, match="adapter: pooler"):
        merge_to_folder(str(base), lost, tmp_path / "out", _SHARD, Silent())
    saved = train(trained, base, tmp_path / "saved", modules_to_save=["pooler", "classifier"])
    proof = release_it(base, saved, tmp_path / "out").proof.targets[0]
    assert proof.problems == ()
    assert proof.behaviour is not None


def test_vectors_of_a_base_without_a_pooler(tmp_path: Path) -> None:
    """A masked language model has none; the vectors do not depend on it."""
    settings = TRAINED["roberta-classes"].settings
    trained = Trained(
        "RobertaForMaskedLM", "RobertaConfig", settings, "FEATURE_EXTRACTION", "AutoModel",
        "RobertaModel", dropped=("lm_head.",),
    )  # fmt: skip
    base = write_base(trained, tmp_path / "base")
    adapter = train(trained, base, tmp_path / "adapter")
    proof = release_it(base, adapter, tmp_path / "out").proof.targets[0]
    assert proof.problems == ()
    assert proof.embedding is not None


@pytest.mark.parametrize("name", ["llama-classes", "llama-vectors"])
def test_a_program_that_writes_text_does_not_get_it(
    make_case: Callable[[str], Case], tmp_path: Path, name: str
) -> None:
    case = make_case(name)
    request = ReleaseRequest(
        (("it", case.adapter),), tmp_path / "out", str(case.base),
        options=ReleaseOptions(targets=("ollama",)),
    )  # fmt: skip
    with pytest.raises(RejectedPlanError) as refusal:
        plan_request(request, Silent())
    text = "\n".join(str(problem) for problem in refusal.value.problems)
    assert "is for models that write text" in text
    assert TRAINED[name].task in text


@pytest.mark.parametrize("name", ["llama-classes", "llama-vectors"])
def test_without_a_wish_it_is_left_out_and_that_is_said(
    make_case: Callable[[str], Case], tmp_path: Path, name: str
) -> None:
    case = make_case(name)
    prepared = plan_request(
        ReleaseRequest((("it", case.adapter),), tmp_path / "out", str(case.base)), Silent()
    )
    assert [target.target for target in prepared.plan.targets] == ["adapter", "merged"]
    assert any("write text" in note for note in prepared.plan.notes)
