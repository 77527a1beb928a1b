"""Base + adapter straight to GGUF, against llama.cpp's converter on our own merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from packager.verify.llama import run_llama
from tests.gguf import llama_tools
from tests.gguf.cases import CASES
from tests.gguf.reading import read_keys
from tests.ollama.conftest import Released

TEMPLATE = "tokenizer.chat_template"
CHAT_KEYS = {TEMPLATE, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.eot_token_id"}
"""What the chat may change: `test_chat` looks at those."""
PASSAGES = (tuple(range(3, 60)), (7, 7, 300, 21, 5))


def tensors(path: Path) -> dict[str, Any]:
    return {each.name: each for each in GGUFReader(path).tensors}


def without_ones(shape: Any) -> list[int]:
    sizes = [int(size) for size in shape]
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return sizes


def comparable(keys: dict[str, Any]) -> dict[str, Any]:
    general = ("general.", "lorapack.", "GGUF.")
    return {
        name: value
        for name, value in keys.items()
        if name not in CHAT_KEYS and (not name.startswith(general) or ".sampling." in name)
    }


@pytest.mark.parametrize("name", CASES)
def test_keys_are_those_of_the_converter(name: str, families: dict[str, Released]) -> None:
    each = families[name]
    ours, theirs = read_keys(each.gguf()), read_keys(each.converted)
    assert comparable(ours) == comparable(theirs)
    assert ours["general.architecture"] == theirs["general.architecture"]
    assert ours["general.file_type"] == theirs["general.file_type"] == (["UINT32"], 0)
    assert ours["general.size_label"] == theirs["general.size_label"]
    assert ours[TEMPLATE][1].endswith(theirs[TEMPLATE][1])


@pytest.mark.parametrize("name", CASES)
def test_tensors_are_those_of_the_converter(name: str, families: dict[str, Released]) -> None:
    each = families[name]
    ours, theirs = tensors(each.gguf()), tensors(each.converted)
    assert ours.keys() == theirs.keys()
    changed = 0
    for key, their in theirs.items():
        our = ours[key]
        assert our.tensor_type == their.tensor_type
        # ggml counts no leading ones of a shape; GGUF has it reversed.
        assert without_ones(our.shape) == without_ones(their.shape)
        exact = np.array_equal(our.data.ravel(), their.data.ravel())
        changed += not exact
        # Merged in float32 here and in float64 there: a last place, where terms cancel.
        np.testing.assert_allclose(
            our.data.ravel(), their.data.ravel(), rtol=1e-6, atol=1e-6, err_msg=key
        )
    assert changed < len(ours)


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_predicts_what_transformers_does(
    name: str, families: dict[str, Released]
) -> None:
    each = families[name]
    model = AutoModelForCausalLM.from_pretrained(each.merged, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(each.base, dtype=torch.float32)
    with run_llama(each.gguf(), PASSAGES) as run, torch.inference_mode():
        for ids, logits in zip(PASSAGES, run.read_logits(), strict=True):
            wanted = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(1)
            without = base(torch.tensor([ids])).logits[0, :-1].float().log_softmax(1)
            found = logits.log_softmax(1)[:, : wanted.shape[1]]
            lost = (found - wanted).norm() / (without - wanted).norm()
            assert lost < 2e-3


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "phi3"])
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M"])
def test_quantised_files_are_those_of_llama_quantize(
    name: str, quant: str, families: dict[str, Released], tmp_path: Path
) -> None:
    each = families[name]
    llama_tools.quantize([each.gguf(), tmp_path / "q.gguf", quant, "2"])
    ours, theirs = tensors(each.gguf(quant)), tensors(tmp_path / "q.gguf")
    assert ours.keys() == theirs.keys()
    for key, their in theirs.items():
        assert ours[key].tensor_type == their.tensor_type, key
        assert ours[key].data.tobytes() == their.data.tobytes(), key
