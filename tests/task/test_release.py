"""A release of each task: loads through its Auto class, answers as base + adapter, is proven."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from tests.task.conftest import LABELS, TRAINED, Case

NAMES = tuple(TRAINED)
MEASURES = {
    "SEQ_CLS": "class", "TOKEN_CLS": "label", "QUESTION_ANS": "span", "CAUSAL_LM": "next token",
    "SEQ_2_SEQ_LM": "next token",
}  # fmt: skip
TAGS = {
    "SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering", "CAUSAL_LM": "text-generation",
    "FEATURE_EXTRACTION": "feature-extraction",
}  # fmt: skip


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, make_case: Callable[[str], Case]) -> Case:
    return make_case(request.param)


class Records(logging.Handler):
    """Keeps what is logged at WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Everything that transformers warns of, by `warnings` or by its log; offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    handler, logger = Records(), transformers_logging.get_logger("transformers")
    logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield handler.lines
        handler.lines += [str(warning.message) for warning in caught]
    logger.removeHandler(handler)


def load(case: Case) -> Any:
    """Loads the merged model as its users do: nothing but the folder is given."""
    auto = getattr(transformers, case.trained.auto)
    model, info = auto.from_pretrained(case.merged, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


def answer(model: Any, task: str) -> Tensor:
    ids = torch.randint(3, 250, (1, 12), generator=torch.Generator().manual_seed(9))
    with torch.inference_mode():
        output = model(input_ids=ids, **({"labels": ids} if task == "SEQ_2_SEQ_LM" else {}))
    if task == "FEATURE_EXTRACTION":
        return output.last_hidden_state
    if task == "QUESTION_ANS":
        return torch.cat([output.start_logits, output.end_logits])
    return output.logits


def test_it_loads_without_a_warning_as_the_class_that_was_trained(
    case: Case, warned: list[str]
) -> None:
    model = load(case)
    assert warned == []
    assert type(model).__name__ == case.trained.architecture
    config = json.loads((case.merged / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [case.trained.architecture]
    assert transformers.AutoTokenizer.from_pretrained(case.merged)("Hello").input_ids


def test_it_answers_as_base_and_adapter(case: Case) -> None:
    task = case.trained.task
    truth = answer(case.load_peft(), task)
    effect = (answer(case.load_base(), task) - truth).norm()
    assert effect > 0.02 * truth.norm(), "the adapter has next to no effect"
    assert (answer(load(case), task) - truth).norm() <= 1e-5 * effect


def test_heads_of_other_tasks_stay_behind_and_nothing_else_does(case: Case) -> None:
    base, merged = (load_file(folder / "model.safetensors") for folder in (case.base, case.merged))
    left = {name for name in base if name not in merged}
    assert left == {name for name in base if name.startswith(case.trained.dropped or ("/",))}
    target = case.made.plan.targets[0]
    assert target.task is not None
    assert set(target.task.dropped) == left
    notes = [note for note in case.made.plan.notes if "stay behind" in note]
    assert bool(notes) is bool(left)


def test_the_behaviour_is_proven_with_the_figures_of_the_task(case: Case) -> None:
    proof = case.made.proof.targets[0]
    assert proof.skipped == {}
    assert proof.problems == ()
    if case.trained.task == "FEATURE_EXTRACTION":
        assert proof.behaviour is None
        assert proof.embedding is not None
        assert proof.embedding.effect_lost < 1e-4
        assert proof.embedding.base_error > 0.02
        assert proof.embedding.cosine_min > 1 - 1e-9
        return
    assert proof.embedding is None
    assert proof.behaviour is not None
    assert proof.behaviour.measure == MEASURES[case.trained.task]
    assert proof.behaviour.effect_lost < 1e-6
    assert proof.behaviour.base_kl_mean > 1e-4
    assert proof.behaviour.top1_agreement == 1.0
    rows = {"SEQ_CLS": 16, "QUESTION_ANS": 32}.get(case.trained.task)
    assert rows is None or proof.behaviour.tokens == rows


def test_the_card_names_task_and_class(case: Case) -> None:
    card = (case.merged / "README.md").read_text(encoding="utf-8")
    tag = TAGS.get(case.trained.task)
    assert (f"pipeline_tag: {tag}\n" in card) is (tag is not None)
    assert "library_name: transformers\n" in card
    assert f"import {case.trained.auto}, AutoTokenizer" in card
    assert f"| Architecture | {case.trained.architecture} |" in card
    assert "Not checked" not in card


@pytest.mark.parametrize(
    "name", ["bert-classes", "bert-labels", "bert-spans", "llama-vectors", "t5-text"]
)
def test_the_card_s_code_runs_as_it_stands(
    name: str, make_case: Callable[[str], Case], capsys: pytest.CaptureFixture[str]
) -> None:
    case = make_case(name)
    card = (case.merged / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("\n```")[0]
    exec(compile(code.replace('"USER/NAME"', repr(str(case.merged))), "card", "exec"), {})
    printed = capsys.readouterr().out
    if case.trained.task in ("SEQ_CLS", "TOKEN_CLS"):
        assert "LABEL_" in printed
    if case.trained.task == "FEATURE_EXTRACTION":
        assert printed.startswith("tensor(")
    assert printed


def test_the_tokenizer_s_files_travel_byte_for_byte(case: Case) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (case.merged / name).read_bytes() == (case.base / name).read_bytes()


def test_a_head_s_classes_are_counted(make_case: Callable[[str], Case]) -> None:
    config = json.loads((make_case("llama-classes").merged / "config.json").read_text("utf-8"))
    assert config["id2label"] == {str(n): f"LABEL_{n}" for n in range(LABELS)}
    assert config["label2id"] == {f"LABEL_{n}": n for n in range(LABELS)}
