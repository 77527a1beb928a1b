"""Rules that stand twice, in the gate and in lorapack, since neither may need the other."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lorapack_gate.document import read_document
from lorapack_gate.expected import ExpectedError
from lorapack_gate.expected import parse_expected as gate_parse
from lorapack_gate.file import SettingError
from lorapack_gate.keyfile import read_keys

from packager.errors import LorapackError
from packager.serve.workplace import check_key_file
from packager.serving.answer import parse_expected
from packager.serving.document import parse_gate
from tests.gate.server import WHOLE, front_gate, whole_expected, whole_gate
from tests.gate.setting import expected_document

LINES = st.lists(
    st.one_of(
        st.text(st.sampled_from("aZ09-_ \t~"), max_size=40),
        st.text(max_size=24),
        st.sampled_from(["k" * 15, "k" * 16, " " + "k" * 16 + "\t", "k" * 8 + " " + "k" * 8, ""]),
    ),
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]))
def test_key_file_is_good_for_both_or_for_none(tmp_path: Path, lines: list[str], end: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(end.join(lines).encode("utf-8", "surrogatepass"))
    assert accepts(check_key_file, path) == accepts(read_keys, path)


def accepts(read: Any, *arguments: Any, **named: Any) -> bool:
    try:
        read(*arguments, **named)
    except (LorapackError, SettingError, ExpectedError):
        return False
    return True


def proof() -> dict[str, Any]:
    """`expected.json` with everything that a release writes."""
    document = expected_document()
    for model in document["models"]:
        model["effect"] = 0.0 if model["kind"] == "base" else 1.0
    whole = {**whole_expected()["models"][0], "effect": 1.0}
    heads = {"truth": "PEFT", "prompt_set": "few", "served_dtype": "bfloat16"}
    return {**document, **heads, "models": [*document["models"], whole]}


BROKEN_PROOFS: dict[str, Any] = {
    "another schema": lambda raw: raw.update(schema_version=2),
    "no models": lambda raw: raw.pop("models"),
    "no questions": lambda raw: raw["models"][0].update(questions=[]),
    "no bound": lambda raw: raw["models"][0].update(kl_bound=0.0),
    "no prompt": lambda raw: raw["models"][0]["questions"][0].update(prompt=[]),
    "no number": lambda raw: raw["models"][0]["questions"][0].update(top=[[1, "x"]]),
    "merged without its base": lambda raw: raw["models"][-1]["questions"][0].pop("base"),
    "too few of the base": lambda raw: raw["models"][-1]["questions"][0]["base"].pop(),
}


@pytest.mark.parametrize("change", [None, *BROKEN_PROOFS])
def test_proof_is_read_alike(change: str | None) -> None:
    raw = copy.deepcopy(proof())
    if change is not None:
        BROKEN_PROOFS[change](raw)
    text = json.dumps(raw)
    assert accepts(parse_expected, text, where="") is (change is None)
    assert accepts(gate_parse, json.loads(text)) is (change is None)
    if change is None:
        for ours, theirs in zip(
            parse_expected(text, where="").models, gate_parse(raw).models, strict=True
        ):
            assert (ours.name, ours.kind, ours.kl_bound) == (theirs.name, theirs.kind, theirs.bound)
            for mine, other in zip(ours.questions, theirs.questions, strict=True):
                assert (mine.prompt, mine.base) == (other.prompt, other.base)
                assert tuple(zip(mine.tokens, mine.logprobs, strict=True)) == other.top


BROKEN_GATES: dict[str, Any] = {
    "another schema": lambda raw: raw.update(schema_version=2),
    "no models": lambda raw: raw.pop("models"),
    "a name twice": lambda raw: raw["models"].append(raw["models"][0]),
    "a neighbour's model twice": lambda raw: raw["neighbours"][0]["models"].append(
        {**raw["models"][0]}
    ),
    "a neighbour elsewhere": lambda raw: raw["neighbours"][0].update(url="https://x:8000/v1"),
    "a base that is no model": lambda raw: raw.update(base="nobody"),
    "a template outside": lambda raw: raw["models"][1].update(chat_template="../../key"),
    "tokens that are none": lambda raw: raw["models"][1].update(stop_token_ids=["x"]),
}


@pytest.mark.parametrize("change", [None, *BROKEN_GATES])
def test_gate_document_is_read_alike(tmp_path: Path, change: str | None) -> None:
    raw = front_gate(whole="http://base-whole:8000")
    raw["expected"] = None
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "pirate.jinja").write_text("x", encoding="utf-8")
    if change is not None:
        BROKEN_GATES[change](raw)
    (tmp_path / "gate.json").write_text(json.dumps(raw), encoding="utf-8")
    assert accepts(parse_gate, json.dumps(raw), where="") is (change is None)
    assert accepts(read_document, tmp_path) is (change is None)
    if change is None:
        ours, theirs = parse_gate(json.dumps(raw), where=""), read_document(tmp_path)
        assert ours.base == theirs.base
        assert [model.name for model in ours.models] == [model.name for model in theirs.models]
        assert [model.name for model in ours.all_models][-1] == theirs.neighbours[0].models[0]
        assert ours.neighbours[0].url == f"http://{theirs.neighbours[0].address}"


def test_server_of_a_whole_model_alone_is_read_alike(tmp_path: Path) -> None:
    raw = {**whole_gate(), "expected": None}
    (tmp_path / "gate.json").write_text(json.dumps(raw), encoding="utf-8")
    assert parse_gate(json.dumps(raw), where="").base == read_document(tmp_path).base == ""
    assert [model.name for model in read_document(tmp_path).models] == [WHOLE]
