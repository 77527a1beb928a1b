"""The proof of a release takes what its adapter uses: behaviour, weights, and both again later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from packager.plan import ReleaseOptions
from packager.preparation import ReleaseRequest
from packager.progress import Silent
from packager.release import release
from packager.verify.bundle import verify_bundle
from tests.merge import merged as oracle
from tests.verify.test_bundle import World

MakeBase = Callable[[str, bool, bool], Path]
BOTH = ["embed_tokens", "lm_head"]

CASES: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "dora": (True, False, {"use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
    "embedding": (True, False, {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "rows": (True, False, {"trainable_token_indices": [5, 3, 380]}),
    "more rows": (True, True, {"trainable_token_indices": [5, 390]}),
    "saved, more rows": (True, True, {"modules_to_save": BOTH, "ensure_weight_tying": True}),
    "apart, more rows": (False, True, {"modules_to_save": [*BOTH, "norm"]}),
    "pissa": (True, False, {"init_lora_weights": "pissa"}),
    "layers": (True, False, {"layer_replication": [[0, 2], [0, 1]]}),
}


@pytest.mark.parametrize("name", CASES)
def test_behaviour_is_proven_and_verified_again(
    make_base: MakeBase, tmp_path: Path, name: str
) -> None:
    tied, enlarged, config = CASES[name]
    base = make_base("bfloat16", False, tied)
    adapter = oracle.write_adapter(
        base,
        tmp_path / "a",
        oracle.enlarge if enlarged else None,
        **{"target_modules": ["q_proj"], **config},
    )
    made = release(
        ReleaseRequest(
            (("a", adapter),), tmp_path / "out", str(base),
            options=ReleaseOptions(targets=("merged",)),
        ),
        Silent(),
    )  # fmt: skip
    (target,) = made.proof.targets
    assert target.problems == ()
    assert target.behaviour is not None
    assert target.weights is not None
    assert target.weights.adapter_tensors_used == target.weights.adapter_tensors_total
    assert target.weights.checked == target.weights.total
    again = verify_bundle(made.bundle, level="weights", base=None, progress=Silent())
    assert [item.problems for item in again.targets] == [()]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"use_dora": True}, "model.layers.0.self_attn.q_proj.weight"),
        ({"trainable_token_indices": [5, 3]}, "model.embed_tokens.weight"),
        ({"modules_to_save": ["norm"]}, "model.norm.weight"),
    ],
)
def test_a_changed_value_is_found(
    make_base: MakeBase, tmp_path: Path, config: dict[str, Any], name: str
) -> None:
    base = make_base("bfloat16", False, True)
    adapter = oracle.write_adapter(base, tmp_path / "a", target_modules=["q_proj"], **config)
    path = oracle.merge(base, adapter, tmp_path / "out").folder / "model.safetensors"
    tensors = load_file(path)
    flat = tensors[name].view(-1)
    place = 5 * tensors[name].shape[-1] if "embed" in name else 0
    flat[place] = flat[place] * 1.5 + torch.tensor(0.25)
    save_file(tensors, path, metadata={"format": "pt"})
    world = World(base, adapter, tmp_path / "out")
    world.seal()
    (problem,) = world.problems()
    assert name in problem
