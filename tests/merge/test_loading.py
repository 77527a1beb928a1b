"""The merged folder as a user meets it: loads offline without a warning, readable by all."""

from __future__ import annotations

import json
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from packager.mergefolder import merge_to_folder
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.merge.conftest import Case, load, load_peft, read_tensors, train
from tests.models import make_llama, write_tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


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
    handler = Records()
    logger = transformers_logging.get_logger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    for seen in (transformers_logging.warning_once, transformers_logging.info_once):
        seen.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield handler.lines
        handler.lines += [str(warning.message) for warning in caught]
    logger.removeHandler(handler)
    logger.setLevel(level)


def load_all(folder: Path) -> tuple[Any, Any]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("variant", ["all-linear", "tied head", "untied head"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_model_and_tokenizer_load_without_a_warning(
    make_case: Callable[..., Case], warned: list[str], variant: str, dtype: str
) -> None:
    case = make_case(variant, dtype, sharded=dtype == "bfloat16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, tokenizer = load_all(case.merged)
    assert [str(item.message) for item in caught] == []
    assert warned == []
    assert model.dtype == getattr(torch, dtype)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head.weight.data_ptr() == embedding.weight.data_ptr()
    assert is_tied is (variant == "all-linear")
    assert tokenizer("Hello 世界 🏴‍☠️").input_ids
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "早"}], tokenize=False, add_generation_prompt=True
    ).startswith("<|im_start|>user\n早")


def test_the_net_for_warnings_catches_one(
    make_case: Callable[..., Case], warned: list[str], tmp_path: Path
) -> None:
    """A head that is missing makes transformers warn: the test above would see it."""
    case = make_case("tied head", "float32")
    for path in case.merged.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert any("lm_head" in line for line in warned)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_head_is_written_apart_and_the_embedding_stays(
    make_case: Callable[..., Case], dtype: str
) -> None:
    case = make_case("tied head", dtype, sharded=dtype == "bfloat16")
    base, merged = read_tensors(case.base), read_tensors(case.merged)
    embedding = "model.embed_tokens.weight"
    assert "lm_head.weight" not in base
    assert torch.equal(merged[embedding], base[embedding])
    assert not torch.equal(merged["lm_head.weight"], base[embedding])
    model, truth = load(case.merged), load_peft(case)
    tokens = torch.arange(4, 28).view(1, 24)
    with torch.inference_mode():
        first = model.model.embed_tokens(tokens)
        assert torch.equal(first, truth.base_model.model.model.embed_tokens(tokens))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("variant", ["tied head", "lora"])
def test_a_stored_head_of_a_tied_base_is_handled_as_transformers_does(
    tmp_path: Path, same: bool, variant: str
) -> None:
    """Some checkpoints store the head although the configuration ties it."""
    base = make_llama(tmp_path / "base", tied=False, dtype="float32")
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    if same:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    adapter = train(base, tmp_path / "adapter", variant)
    merge_to_folder(str(base), adapter, tmp_path / "out", 5 << 30, Silent())
    case = Case(base, adapter, tmp_path / "out", "float32", "float32", variant)
    tokens = torch.arange(4, 28).view(1, 24)
    with torch.inference_mode():
        truth = load_peft(case)(input_ids=tokens).logits
        torch.testing.assert_close(load(case.merged)(input_ids=tokens).logits, truth)


def test_tokenizer_files_are_the_base_s_byte_for_byte(make_case: Callable[..., Case]) -> None:
    case = make_case("lora", "bfloat16")
    for name in (*TOKENIZER_FILES, "generation_config.json", "LICENSE"):
        assert (case.merged / name).read_bytes() == (case.base / name).read_bytes()


def test_tokenizer_files_are_the_adapter_s_own_first(tmp_path: Path) -> None:
    base = make_llama(tmp_path / "base", vocab_rows=400)
    adapter = train(base, tmp_path / "adapter", "lora")
    write_tokenizer(adapter, size=300)
    template = "{{ '你好 🏴‍☠️' }}"
    (adapter / "chat_template.jinja").write_text(template, encoding="utf-8")
    merge_to_folder(str(base), adapter, tmp_path / "out", 5 << 30, Silent())
    for name in TOKENIZER_FILES:
        assert (tmp_path / "out" / name).read_bytes() == (adapter / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 300
    message = {"role": "user", "content": "?"}
    assert tokenizer.apply_chat_template([message], tokenize=False) == "你好 🏴‍☠️"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_is_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    """Weights saved by safetensors are for their owner only; a container's user has to read."""
    base = make_llama(tmp_path / "base")
    adapter = train(base, tmp_path / "adapter", "rslora")
    for folder in (base, adapter):
        for path in folder.iterdir():
            path.chmod(0o600)
    before = os.umask(umask)
    try:
        options = ReleaseOptions(targets=("adapter", "merged"))
        request = ReleaseRequest(
            ((None, adapter),), tmp_path / "out", str(base), options=options, behaviour=False
        )
        bundle = release(request, Silent()).bundle
    finally:
        os.umask(before)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in [bundle, *bundle.rglob("*")]}
    assert len(found) > 20
    for path, held in found.items():
        assert held == (mode | 0o111 & ~umask if path.is_dir() else mode), path


@pytest.mark.parametrize("sharded", [False, True])
def test_the_one_step_form_writes_what_a_release_writes(
    make_case: Callable[..., Case], tmp_path: Path, sharded: bool
) -> None:
    case = make_case("patterns", "bfloat16", sharded=sharded)
    entries = merge_to_folder(str(case.base), case.adapter, tmp_path / "out", 5 << 30, Silent())
    released = {path.name for path in case.merged.iterdir()} - {"README.md"}
    assert {entry.path for entry in entries} == released
    for name in released:
        assert (tmp_path / "out" / name).read_bytes() == (case.merged / name).read_bytes(), name
