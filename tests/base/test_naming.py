"""Names that a stranger wrote, and parameters of which parts are missing or come twice."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from packager.base.naming import Naming
from packager.tensorfile import TensorRef

MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
START = "model.layers.0.block_sparse_moe.experts."
FUSED = "model.layers.0.mlp.experts.gate_up_proj"


def naming(names: list[str]) -> Naming:
    refs = {name: TensorRef(name, Path("model.safetensors"), 0, "BF16", (8, 4)) for name in names}
    return Naming(MIXTRAL, refs)


def experts(*numbers: int) -> list[str]:
    return [f"{START}{number}.{part}.weight" for number in numbers for part in ("w1", "w3")]


def test_experts_come_in_the_order_of_their_numbers() -> None:
    found = naming(experts(*sorted(range(11), key=str))).find(FUSED)
    assert [(part.expert, part.part) for part in found] == [
        (number, part) for number in range(11) for part in range(2)
    ]
    assert found[4].ref.name == f"{START}2.w1.weight"
    assert found[5].ref.name == f"{START}2.w3.weight"


def test_nothing_is_found_where_a_part_is_missing() -> None:
    assert naming(experts(0, 1)).find(FUSED)
    assert naming(experts(0, 2)).find(FUSED) == ()
    assert naming(experts(1, 2)).find(FUSED) == ()
    assert naming(experts(0, 1)[:-1]).find(FUSED) == ()
    assert naming([*experts(0, 1)[:-1], f"{START}01.w1.weight"]).find(FUSED) == ()


def test_two_tensors_for_one_parameter_are_none() -> None:
    router = "model.layers.0.mlp.gate.weight"
    stored = router.replace(".mlp.", ".block_sparse_moe.")
    assert [part.ref.name for part in naming([stored]).find(router)] == [stored]
    assert [part.ref.name for part in naming([router]).find(router)] == [router]
    assert naming([router, stored]).find(router) == ()


def test_names_made_to_take_long_do_not() -> None:
    began = monotonic()
    for start in ("model.layers.0" + ".experts.1" * 2000, "mlp.experts." * 20, "a." * 5000):
        found = naming([f"{start}.{number}" for number in range(2000)])
        assert found.find(f"{start}.7")[0].ref.name == f"{start}.7"
    assert monotonic() - began < 5
