"""What is saved whole or by rows takes the place of the base's: modules, biases, token rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, Qwen2Config

from packager.errors import AdapterError, RejectedPlanError
from tests.folders import PREFIX
from tests.merge import merged as oracle

MakeBase = Callable[[str, bool, bool], Path]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LOST = {"float32": 1e-5, "bfloat16": 0.05}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases on some of its linear layers."""
    config = Qwen2Config(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return oracle.make_model(tmp_path_factory.mktemp("qwen2") / "base", config)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with biases everywhere, and weights stored the other way round."""
    config = GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    return oracle.make_model(tmp_path_factory.mktemp("gpt2") / "base", config)


@pytest.mark.parametrize(
    ("names", "expected", "dtype"),
    [
        (["norm"], 5, "float32"),
        (["mlp"], 6, "bfloat16"),
        (["lm_head", "embed_tokens"], 2, "bfloat16"),
    ],
)
def test_saved_modules_replace_the_base_s(
    make_base: MakeBase, tmp_path: Path, names: list[str], expected: int, dtype: str
) -> None:
    base = make_base(dtype, True, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=names
    )
    merged = oracle.merge(base, adapter, tmp_path / "out")
    assert len(oracle.check_tensors(merged)) == expected + 2
    oracle.check_logits(merged, lost=LOST[dtype])


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_saved_biases_replace_the_base_s(qwen2: Path, tmp_path: Path, bias: str) -> None:
    adapter = oracle.write_adapter(
        qwen2, tmp_path / "a", target_modules=["q_proj", "o_proj"], bias=bias
    )
    merged = oracle.merge(qwen2, adapter, tmp_path / "out")
    changed = oracle.check_tensors(merged)
    biases = {name for name in changed if name.endswith("bias")}
    assert len(biases) == (6 if bias == "all" else 2)
    assert len(changed - biases) == 4
    oracle.check_logits(merged)


def test_biases_of_lora_b_are_scaled(qwen2: Path, tmp_path: Path) -> None:
    adapter = oracle.write_adapter(
        qwen2, tmp_path / "a", target_modules=["q_proj", "v_proj"], lora_bias=True, bias="lora_only"
    )
    merged = oracle.merge(qwen2, adapter, tmp_path / "out")
    assert sum(name.endswith("bias") for name in oracle.check_tensors(merged)) == 4
    oracle.check_logits(merged)


def test_a_bias_without_a_place_is_refused_by_name(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("float32", False, False)
    adapter = oracle.write_adapter(base, tmp_path / "a", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(RejectedPlanError, match="the base has no bias there") as caught:
        oracle.merge(base, adapter, tmp_path / "out")
    assert "--target adapter" in caught.value.problems[0].hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dora", [False, True])
def test_conv1d_with_biases(gpt2: Path, tmp_path: Path, dora: bool) -> None:
    """DoRA's norms are those of columns there."""
    adapter = oracle.write_adapter(
        gpt2, tmp_path / "a", target_modules=["c_attn", "c_proj", "c_fc"], bias="all",
        use_dora=dora, fan_in_fan_out=True,
    )  # fmt: skip
    merged = oracle.merge(gpt2, adapter, tmp_path / "out")
    changed = oracle.check_tensors(merged)
    assert len(changed) == 2 * 4 + sum(name.endswith("bias") for name in changed)
    oracle.check_logits(merged)


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([5, 3, 380], {EMBEDDING}), ({"embed_tokens": [7, 9], "lm_head": [2]}, {EMBEDDING, HEAD})],
)
def test_trained_rows_replace_the_base_s(
    make_base: MakeBase, tmp_path: Path, indices: Any, expected: set[str]
) -> None:
    base = make_base("bfloat16", False, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=indices
    )
    merged = oracle.merge(base, adapter, tmp_path / "out")
    changed = oracle.check_tensors(merged)
    assert expected <= changed
    before, after = (oracle.read_tensors(item)[EMBEDDING] for item in (base, merged.folder))
    rows = indices if isinstance(indices, list) else indices["embed_tokens"]
    same = [row for row in range(len(before)) if torch.equal(before[row], after[row])]
    assert sorted(set(range(len(before))) - set(same)) == sorted(rows)
    oracle.check_logits(merged, lost=0.05)


@pytest.mark.parametrize("dora", [False, True])
def test_lora_on_embeddings(make_base: MakeBase, tmp_path: Path, dora: bool) -> None:
    base = make_base("bfloat16", True, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["embed_tokens", "v_proj"], use_dora=dora,
        rank_pattern={"embed_tokens": 2},
    )  # fmt: skip
    merged = oracle.merge(base, adapter, tmp_path / "out")
    assert EMBEDDING in oracle.check_tensors(merged)
    oracle.check_logits(merged, lost=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "what"),
    [
        ("model.norm.weight", (3,), "another shape or type"),
        ("model.other.norm.weight", (64,), "which is not in the base"),
    ],
)
def test_a_saved_tensor_that_does_not_fit_is_refused(
    make_base: MakeBase, tmp_path: Path, name: str, shape: tuple[int, ...], what: str
) -> None:
    base = make_base("float32", False, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["norm"]
    )
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {f"{PREFIX}{name}": torch.ones(shape)}, path)
    with pytest.raises(RejectedPlanError, match=what):
        oracle.merge(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_tensor_that_diverged_is_refused(
    make_base: MakeBase, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = make_base("float32", False, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["norm"]
    )
    path = adapter / "adapter_model.safetensors"
    name = f"{PREFIX}model.norm.weight"
    tensors = load_file(path)
    save_file(tensors | {name: (tensors[name] * torch.nan).to(dtype)}, path)
    with pytest.raises(AdapterError, match=r"'model\.norm\.weight' holds NaN"):
        oracle.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_beyond_the_embedding_and_rows_twice_are_refused(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("float32", False, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=["q_proj"], trainable_token_indices=[5, 3]
    )
    path = adapter / "adapter_config.json"
    text = path.read_text("utf-8")
    for indices, what in (("[5, 4000]", "rows below 384"), ("[5, 5]", "trained twice")):
        stated = '"trainable_token_indices": [\n    5,\n    3\n  ]'
        assert stated in text
        path.write_text(text.replace(stated, f'"trainable_token_indices": {indices}'), "utf-8")
        with pytest.raises(RejectedPlanError, match=what):
            oracle.merge(base, adapter, tmp_path / "out")
