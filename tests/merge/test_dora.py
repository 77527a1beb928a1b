"""DoRA: each output's weights get their trained norm, whichever way round they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.merge import merged as oracle
from tests.merge.merged import Merged

MakeBase = Callable[[str, bool, bool], Path]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_linear_layers_get_norms_by_row(make_base: MakeBase, tmp_path: Path, dtype: str) -> None:
    base = make_base(dtype, True, True)
    adapter = oracle.write_adapter(
        base, tmp_path / "a", use_dora=True, target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2},
    )  # fmt: skip
    merged = oracle.merge(base, adapter, tmp_path / "out")
    assert len(oracle.check_tensors(merged)) == 4
    oracle.check_logits(merged, lost=1e-5 if dtype == "float32" else 0.05)


def test_a_head_and_its_tied_embedding_part(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("float32", False, True)
    merged = _make(base, tmp_path, target_modules=["lm_head", "v_proj"])
    assert merged.config["tie_word_embeddings"] is False
    assert "lm_head.weight" in oracle.check_tensors(merged)
    oracle.check_logits(merged)


def _make(base: Path, folder: Path, **config: object) -> Merged:
    adapter = oracle.write_adapter(base, folder / "a", use_dora=True, **config)
    return oracle.merge(base, adapter, folder / "out")
