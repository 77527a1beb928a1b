"""The same updates in GGUF: values equal PEFT's, the vocabulary is the adapter's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import GPT2Config

from packager.gguf import pretokenizer
from packager.gguf.tokenizerdocument import check_encodings, open_tokenizer
from packager.gguf.tokenizerfile import list_tokenizer_files
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.merge import merged as oracle
from tests.models import write_tokenizer

MakeBase = Callable[[str, bool, bool], Path]
BOTH = ["embed_tokens", "lm_head"]

LLAMA = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
"""Tensors of a Llama whose rows llama.cpp keeps in order."""
GPT2 = {
    "token_embd.weight": "transformer.wte.weight",
    "blk.{}.attn_qkv.weight": "transformer.h.{}.attn.c_attn.weight",
    "blk.{}.attn_qkv.bias": "transformer.h.{}.attn.c_attn.bias",
    "blk.{}.ffn_down.weight": "transformer.h.{}.mlp.c_proj.weight",
    "blk.{}.ffn_down.bias": "transformer.h.{}.mlp.c_proj.bias",
}

CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "dora": (True, {"use_dora": True, "target_modules": ["v_proj", "down_proj", "q_proj"]}),
    "saved": (False, {"modules_to_save": [*BOTH, "norm"]}),
    "rows": (True, {"trainable_token_indices": [5, 3, 380]}),
    "embedding": (True, {"target_modules": ["embed_tokens", "v_proj"]}),
    "layers": (True, {"layer_replication": [[0, 2], [0, 1]], "target_modules": ["v_proj"]}),
}


@pytest.fixture(autouse=True)
def _known_tokenizer(make_base: MakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the tokenizer that tests train a name that llama.cpp knows."""
    files = list_tokenizer_files(make_base("float32", False, True))
    ids = next(check_encodings(open_tokenizer(files), files))
    known = {**pretokenizer.NAMES, pretokenizer.hash_ids(ids): "llama-bpe"}
    monkeypatch.setattr(pretokenizer, "NAMES", known)


def write_gguf(base: Path, adapter: Path, out: Path) -> GGUFReader:
    """Releases one GGUF file in float32, proven block by block."""
    options = ReleaseOptions(targets=("ollama",), quants=("F32",))
    request = ReleaseRequest(((("a"), adapter),), out, str(base), options=options, behaviour=False)
    bundle = release(request, Silent()).bundle
    return GGUFReader(bundle / "ollama/a/a-F32.gguf")


def values_of(reader: GGUFReader) -> dict[str, NDArray[np.float32]]:
    return {item.name: np.array(item.data).reshape(item.shape[::-1]) for item in reader.tensors}


def check_values(
    reader: GGUFReader, names: dict[str, str], truth: dict[str, torch.Tensor], layers: int = 2
) -> int:
    """Compares those tensors that are in the file; returns how many."""
    found, count = values_of(reader), 0
    for name, source in names.items():
        for layer in range(layers if "{}" in name else 1):
            wanted = truth[source.format(layer)].numpy()
            values = found.get(name.format(layer))
            if values is None:
                assert name == "output.weight", name
                continue
            if "c_attn.weight" in source or "c_proj.weight" in source:
                wanted = wanted.T
            assert np.allclose(values, wanted, rtol=0, atol=2e-6), name
            count += 1
    return count


@pytest.mark.parametrize("name", CASES)
def test_values_are_peft_s(make_base: MakeBase, tmp_path: Path, name: str) -> None:
    tied, config = CASES[name]
    base = make_base("float32", False, tied)
    adapter = oracle.write_adapter(base, tmp_path / "a", **{"target_modules": ["q_proj"], **config})
    reader = write_gguf(base, adapter, tmp_path / "out")
    layers = 3 if name == "layers" else 2
    merged = oracle.Merged(base, adapter, tmp_path)
    count = check_values(reader, LLAMA, oracle.true_tensors(merged), layers)
    assert count == 2 + 2 * layers + (name in ("saved", "embedding"))
    blocks = reader.fields["llama.block_count"].contents()
    assert blocks == layers


def test_columns_and_biases_of_gpt2(tmp_path: Path) -> None:
    tokens = write_tokenizer(tmp_path / "base")
    config = GPT2Config(
        vocab_size=tokens, n_positions=64, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    base = oracle.make_model(tmp_path / "base", config)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["c_attn", "c_proj", "wte"], bias="all", use_dora=True,
    )  # fmt: skip
    reader = write_gguf(base, adapter, tmp_path / "out")
    merged = oracle.Merged(base, adapter, tmp_path)
    assert check_values(reader, GPT2, oracle.true_tensors(merged)) == 9


def test_an_enlarged_vocabulary_comes_with_its_tokenizer(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("float32", False, True)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", oracle.enlarge, target_modules=["q_proj"], modules_to_save=BOTH,
        ensure_weight_tying=True,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    known = tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<new {number}>" for number in range(oracle.MORE - 2)])
    tokenizer.save(str(adapter / "tokenizer.json"))
    shutil.copy(base / "tokenizer_config.json", adapter)
    shutil.copy(base / "chat_template.jinja", adapter)
    reader = write_gguf(base, adapter, tmp_path / "out")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == known + oracle.MORE
    assert tokens[known : known + 2] == ["<new 0>", "<new 1>"]
    assert tokens[-1] == f"[PAD{known + oracle.MORE - 1}]"
    merged = oracle.Merged(base, adapter, tmp_path)
    truth = oracle.true_tensors(merged, oracle.enlarge)
    assert check_values(reader, LLAMA, truth) == 6
    assert values_of(reader)["token_embd.weight"].shape[0] == known + oracle.MORE
