"""Pairs of factors as updates of the tensors that the base stores."""

from __future__ import annotations

from packager.adapter import LoraModule
from packager.adapter.scope import ResidualKind
from packager.base import BaseIndex
from packager.base.naming import StoredPart
from packager.plan.update import Axis, Delta, Magnitude, PartDelta, Residual, Rounding, Update
from packager.quantisation.layer import CONV1D_MODELS, CONV1D_MODULES


def plan_pair(
    module: LoraModule, adapter: str, part: StoredPart, base: BaseIndex
) -> tuple[Update, ...]:
    """Plans the updates of the tensor in which the weight of an adapted layer is stored.

    Args:
        module: The layer.
        adapter: Name of the adapter in the release.
        part: Where the weight is stored.
        base: The base.
    """
    if part.operation == "chunk":
        return (_plan_rows(module, adapter, part),)
    name = module.module
    delta = _plan_delta(module, adapter, base)
    updates: list[Update] = [delta]
    if module.residual is not None:
        updates.insert(0, _plan_start(module, adapter, module.residual))
    if module.magnitude is not None:
        axis: Axis = "column" if delta.transposed else "row"
        updates.append(Magnitude(adapter, name, module.magnitude.name, axis))
    return tuple(updates)


def _plan_start(module: LoraModule, adapter: str, kind: ResidualKind) -> Update:
    """Plans what makes of a weight what it was when the training began."""
    if kind == "loftq-nf4":
        return Rounding(adapter, module.module, "nf4")
    if kind == "loftq-int8":
        return Rounding(adapter, module.module, "int8")
    return Residual(adapter, module.module, module.rank, module.scale, kind)


def _plan_delta(module: LoraModule, adapter: str, base: BaseIndex) -> Delta:
    return Delta(
        adapter=adapter,
        module=module.module,
        lora_a=module.lora_a.name,
        lora_b=module.lora_b.name,
        rank=module.rank,
        scale=module.scale,
        transposed=module.embedding or stores_transposed(module, base),
        blocks=module.blocks,
        idle=tuple(ref.name for ref in module.idle),
        diagonal=None if module.diagonal is None else module.diagonal.name,
        convolution=bool(module.kernel),
    )


def _plan_rows(module: LoraModule, adapter: str, part: StoredPart) -> PartDelta:
    """Plans the update of a layer whose weight is some rows of a stored tensor."""
    rows = module.lora_b.shape[0]
    return PartDelta(
        adapter=adapter,
        module=module.module,
        lora_a=module.lora_a.name,
        lora_b=module.lora_b.name,
        rank=module.rank,
        scale=module.scale,
        experts=1,
        expert=None,
        transposed=False,
        first_output=0,
        outputs=rows,
        first_row=part.part * rows,
        share=0,
        shares=1,
        kind="part-lora",
    )


def stores_transposed(module: LoraModule, base: BaseIndex) -> bool:
    """Tells whether the base stores the weight below a module as (in_features, out_features).

    PEFT looks at the layer's class and corrects `fan_in_fan_out` by it, so that the field alone
    tells nothing of a single module.

    Source: PEFT 0.21, tuners/lora/model.py, _create_new_module: Conv1D and Linear.
    """
    return uses_conv1d(base) and module.module.rpartition(".")[2] in CONV1D_MODULES


def uses_conv1d(base: BaseIndex) -> bool:
    """Tells whether a model's linear layers are Conv1D, which store their weights so."""
    return base.config.get("model_type") in CONV1D_MODELS
