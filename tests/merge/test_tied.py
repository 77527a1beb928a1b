"""An embedding and a head that are one tensor: one or two after merging, as PEFT ties adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from packager.errors import AdapterError, RejectedPlanError
from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from tests.folders import PREFIX
from tests.merge import merged as oracle

MakeBase = Callable[[str, bool, bool], Path]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = ["embed_tokens", "lm_head"]
SAME_ROWS = {"embed_tokens": [5, 3], "lm_head": [5, 3]}
OTHER_ROWS = {"embed_tokens": [5, 3], "lm_head": [5, 4]}

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "LoRA on the embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, False),
    "LoRA on the head": ({"target_modules": ["lm_head", "q_proj"]}, False),
    "LoRA on both": ({"target_modules": BOTH}, False),
    "LoRA on both, tied": ({"target_modules": BOTH, "ensure_weight_tying": True}, True),
    "LoRA on the head, tied": ({"target_modules": ["lm_head"], "ensure_weight_tying": True}, True),
    "DoRA on the embedding": ({"target_modules": ["embed_tokens"], "use_dora": True}, False),
    "embedding saved": ({"modules_to_save": ["embed_tokens"]}, False),
    "head saved": ({"modules_to_save": ["lm_head"]}, False),
    "both saved": ({"modules_to_save": BOTH}, False),
    "both saved, tied": ({"modules_to_save": BOTH, "ensure_weight_tying": True}, True),
    "head saved, tied": ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, True),
    "rows": ({"trainable_token_indices": [5, 3, 380]}, True),
    "rows of both": ({"trainable_token_indices": SAME_ROWS}, True),
    "other rows of both": ({"trainable_token_indices": OTHER_ROWS}, False),
    "rows of the head": ({"trainable_token_indices": {"lm_head": [5, 4]}}, False),
    "rows, LoRA on the head": (
        {"trainable_token_indices": [5, 3], "target_modules": ["lm_head", "q_proj"]}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_tensor_stays_one_or_becomes_two(
    make_base: MakeBase, tmp_path: Path, name: str
) -> None:
    config, stays = CASES[name]
    base = make_base("float32", False, True)
    adapter = oracle.write_adapter(base, tmp_path / "a", **{"target_modules": ["q_proj"], **config})
    merged = oracle.merge(base, adapter, tmp_path / "out")
    assert merged.config["tie_word_embeddings"] is stays
    assert (HEAD in oracle.read_tensors(merged.folder)) is not stays
    oracle.check_logits(merged)
    # Below a pair of its own, PEFT leaves the wrapper of the rows in place.
    unknown = {HEAD} if name == "rows, LoRA on the head" else set()
    oracle.check_tensors(merged, unknown=unknown)


def test_what_peft_saves_twice_has_to_be_the_same(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("float32", False, True)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", target_modules=BOTH, ensure_weight_tying=True
    )
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"{PREFIX}lm_head.lora_A.weight"] += 1
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"carries 'lm_head\.lora_A' twice"):
        oracle.merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


ENLARGED: dict[str, tuple[bool, dict[str, Any]]] = {
    "tied": (True, {}),
    "untied": (False, {}),
    "tied, both saved": (True, {"modules_to_save": BOTH}),
    "tied, embedding saved": (True, {"modules_to_save": ["embed_tokens"]}),
    "tied, both saved and tied": (True, {"modules_to_save": BOTH, "ensure_weight_tying": True}),
    "untied, both saved": (False, {"modules_to_save": BOTH}),
    "tied, LoRA on the embedding": (True, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, LoRA on the head": (True, {"target_modules": ["lm_head", "q_proj"]}),
    "untied, LoRA on both": (False, {"target_modules": BOTH}),
    "tied, LoRA on both, tied": (True, {"target_modules": BOTH, "ensure_weight_tying": True}),
    "tied, rows": (True, {"trainable_token_indices": [5, 390]}),
    "untied, rows": (False, {"trainable_token_indices": [5, 390]}),
}


@pytest.mark.parametrize("name", ENLARGED)
def test_an_enlarged_vocabulary_is_released(make_base: MakeBase, tmp_path: Path, name: str) -> None:
    tied, config = ENLARGED[name]
    base = make_base("float32", False, tied)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", oracle.enlarge, **{"target_modules": ["q_proj"], **config}
    )
    merged = oracle.merge(base, adapter, tmp_path / "out")
    rows = oracle.read_tensors(base)[EMBEDDING].shape[0] + oracle.MORE
    assert merged.config["vocab_size"] == rows
    assert {len(oracle.read_tensors(merged.folder)[EMBEDDING])} == {rows}
    oracle.check_logits(merged, oracle.enlarge)
    oracle.check_tensors(merged, oracle.enlarge)


def test_more_rows_are_not_served_beside_the_base(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("float32", False, True)
    adapter = oracle.write_adapter(base, tmp_path / "a", oracle.enlarge, target_modules=["q_proj"])
    options = ReleaseOptions(targets=("gguf-adapter",))
    request = ReleaseRequest((("a", adapter),), tmp_path / "out", str(base), options=options)
    with pytest.raises(RejectedPlanError, match="a vocabulary of another size") as caught:
        release(request, Silent())
    assert (caught.value.problems[0].expected, caught.value.problems[0].found) == (
        "384 rows of the embedding", "392",
    )  # fmt: skip


@pytest.mark.parametrize(("layer", "lost"), [("embed_tokens", HEAD), ("lm_head", EMBEDDING)])
def test_new_rows_that_were_not_saved_are_missed(
    make_base: MakeBase, tmp_path: Path, layer: str, lost: str
) -> None:
    """PEFT saves only the adapted layer, and loads it onto random rows of the other."""
    base = make_base("float32", False, False)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", oracle.enlarge, target_modules=[layer, "q_proj"]
    )
    with pytest.raises(RejectedPlanError, match=f"{lost!r} was not saved in its new size") as found:
        oracle.merge(base, adapter, tmp_path / "out")
    assert "save_embedding_layers=True" in found.value.problems[0].hint
