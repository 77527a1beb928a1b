"""One rule for each output tensor of a merged model; every adapter tensor is used once."""

from __future__ import annotations

from dataclasses import replace

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.base.naming import StoredPart
from packager.dtype import MERGEABLE
from packager.errors import AdapterError, BaseError, LorapackError
from packager.plan.change import (
    HEAD_NAME,
    Change,
    Changes,
    add_updates,
    find_changes,
    stored_tensor,
)
from packager.plan.expert import plan_parameters
from packager.plan.misfit import (
    is_dropped,
    rescaled_expert,
    unknown_modules,
    unrepeated_residual,
    unscaled_rows,
    unselected_modules,
    untold_layout,
)
from packager.plan.missing import find_missing
from packager.plan.module import is_module_tuner, plan_modules
from packager.plan.pair import plan_pair, stores_transposed, uses_conv1d
from packager.plan.replication import check_layers, keep_sources, replicate_layers
from packager.plan.source import AdapterSource
from packager.plan.tie import settle_head
from packager.plan.update import Update, rule_of
from packager.plan.value import PlannedTensor
from packager.quantisation.encoding import QuantisedRef
from packager.tensorfile import TensorRef

_AS_STORED = ("olora", "loftq-nf4", "loftq-int8")
"""Initialisations that take a weight as it is stored for the layer's own: PEFT has them for Linear
layers only."""


def plan_tensors(
    source: AdapterSource, base: BaseIndex, dtype: str | None
) -> tuple[dict[str, PlannedTensor], list[LorapackError]]:
    """Plans the tensors of base + adapter.

    Args:
        source: The adapter.
        base: The base.
        dtype: Output type of floating tensors, or None to keep each.

    Returns:
        Output name → tensor, in the base's file order with an untied head last; and every
        problem found. A head is untied only when the adapter changes it.
    """
    unknown = check_layers(source, base)
    layers = base if unknown else replicate_layers(source, base)
    changes = find_changes(source, layers)
    if is_module_tuner(source):
        targets, problems = plan_modules(source, layers)
    else:
        targets, problems = _match_modules(changes)
    whole = [*(name.rpartition(".")[0] for name in source.spec.saved), *source.spec.token_rows]
    lost = [name for name in whole if is_dropped(source, name, base)]
    if lost:
        problems.append(unknown_modules(source, base, lost))
    if not (unknown or problems or changes.problems):
        problems += find_missing(source, layers)
    add_updates(changes, targets)
    settle_head(changes)
    names = [*layers.tensors, *(name for name in changes.by_name if name not in layers.tensors)]
    planned = {name: _plan_tensor(name, changes, dtype) for name in names}
    _share(planned, layers)
    return keep_sources(planned, layers, base), [*unknown, *problems, *changes.problems]


def count_embedding_rows(source: AdapterSource, base: BaseIndex) -> int | None:
    """Returns the rows of the merged embedding, or None where it has no name that is known."""
    shape = None if base.embedding is None else _enlarged(source, base).shape(base.embedding.name)
    return None if shape is None else shape[0]


def _enlarged(source: AdapterSource, base: BaseIndex) -> Changes:
    changes = find_changes(source, base)
    settle_head(changes)
    return changes


def unties_head(planned: dict[str, PlannedTensor], base: BaseIndex) -> bool:
    """Tells whether the plan gives a tied model a head of its own."""
    head, embedding = _head_of(planned, base), base.embedding
    if not base.ties_embeddings or head is None or embedding is None:
        return False
    own = (head.source_adapter, head.deltas)
    return base.head is None or own != (
        planned[embedding.name].source_adapter,
        planned[embedding.name].deltas,
    )


def _head_of(planned: dict[str, PlannedTensor], base: BaseIndex) -> PlannedTensor | None:
    return planned.get(HEAD_NAME if base.head is None else base.head.name)


def _share(planned: dict[str, PlannedTensor], base: BaseIndex) -> None:
    """Counts what embedding and head have in common with the embedding only."""
    head, embedding = _head_of(planned, base), base.embedding
    if base.ties_embeddings and head is not None and embedding is not None:
        counted = {name for _, name in planned[embedding.name].adapter_tensors}
        shared = tuple(name for _, name in head.adapter_tensors if name in counted)
        planned[head.name] = replace(head, shared=shared)


def find_base_weight(module: LoraModule, base: BaseIndex) -> TensorRef | None:
    """Returns the stored tensor that is the weight below a module; of a tied head, the embedding.

    None too where the checkpoint stores the weight within another tensor.
    """
    part = _find_part(module, base)
    return part.ref if part is not None and part.operation == "rename" else None


def _find_part(module: LoraModule, base: BaseIndex) -> StoredPart | None:
    """Returns where the weight below a module is stored: as a tensor, or as rows of one."""
    if is_tied_head(module, base) and base.embedding is not None:
        return StoredPart(base.embedding)
    parts = base.naming.find(f"{module.module}.weight")
    found = len(parts) == 1 and parts[0].operation in ("rename", "chunk")
    return parts[0] if found else None


def is_tied_head(module: LoraModule, base: BaseIndex) -> bool:
    """Tells whether a module is an output head that has no weight of its own in the base."""
    tied = base.head is None and base.ties_embeddings
    return tied and base.naming.spell(f"{module.module}.weight") == HEAD_NAME


def _plan_tensor(name: str, changes: Changes, dtype: str | None) -> PlannedTensor:
    change, stored = changes.find(name), stored_tensor(name, changes.base)
    ref = change.source or stored
    assert ref is not None, name
    of_type = stored or changes.base.embedding or ref
    out = dtype if dtype is not None and of_type.dtype in MERGEABLE else of_type.dtype
    return PlannedTensor(
        name=name,
        dtype=out,
        shape=ref.shape,
        rule=_rule_name(change, ref, out),
        source=ref.name,
        deltas=change.updates,
        source_adapter=None if change.source is None else changes.source.name,
        copies=change.copies,
    )


def _rule_name(change: Change, ref: TensorRef, dtype: str) -> str:
    if change.updates or change.source is not None:
        return rule_of(change.updates, saved=change.source is not None)
    if isinstance(ref, QuantisedRef):
        return "dequantise"
    return "copy" if dtype == ref.dtype else "cast"


def _match_modules(
    changes: Changes,
) -> tuple[dict[str, tuple[Update, ...]], list[LorapackError]]:
    source, base = changes.source, changes.base
    targets, problems = plan_parameters(source, base)
    taken = {(name, 0) for name in targets}
    unknown: list[str] = []
    unselected: list[str] = []
    for module in source.spec.modules.values():
        part = _find_part(module, base)
        name = HEAD_NAME if is_tied_head(module, base) or part is None else part.ref.name
        dropped = is_dropped(source, module.module, base)
        if part is None or dropped or (name, part.part) in taken:
            unknown.append(module.module)
            continue
        if not (source.spec.config.selects(module.module) or _is_tied_pair(module, changes)):
            unselected.append(module.module)
        part = replace(part, ref=replace(part.ref, shape=changes.shape(name) or part.ref.shape))
        problem = _check_fit(source, module, part, base)
        if problem is not None:
            problems.append(problem)
        taken.add((name, part.part))
        updates = plan_pair(module, source.name, part, base)
        targets[name] = (*targets.get(name, ()), *updates)
    if unknown:
        problems.insert(0, unknown_modules(source, base, unknown))
    if unselected:
        problems.append(unselected_modules(source, unselected))
    return targets, problems


def _is_tied_pair(module: LoraModule, changes: Changes) -> bool:
    """Tells whether PEFT adapts a head because the embedding is."""
    tied = (
        changes.source.spec.config.raw.get("ensure_weight_tying") and changes.base.ties_embeddings
    )
    head = HEAD_NAME if changes.base.head is None else changes.base.head.name
    return bool(tied) and changes.base.naming.spell(f"{module.module}.weight") == head


def _check_fit(
    source: AdapterSource, module: LoraModule, part: StoredPart, base: BaseIndex
) -> LorapackError | None:
    ref = part.ref
    if ref.dtype not in MERGEABLE:
        return BaseError(
            f"base tensor {ref.name!r} is of a type that nothing can be merged into",
            where=str(ref.file),
            expected="float32, bfloat16 or float16",
            found=ref.dtype,
            hint="give the 16-bit original of this base with --base",
        )
    wanted = module.shape
    if stores_transposed(module, base):
        wanted = wanted[::-1]
    linear = not module.embedding and not module.kernel
    flagged = bool(source.spec.config.raw.get("fan_in_fan_out")) and linear
    if flagged and wanted[0] == wanted[1] and not uses_conv1d(base):
        return untold_layout(source, module, base)
    problem = _check_form(source, module, part, base)
    if problem is not None:
        return problem
    if (wanted[0] * part.parts, *wanted[1:]) == ref.shape:
        return None
    return AdapterError(
        f"module {module.module!r} of the adapter has another width than the base",
        where=str(source.spec.directory),
        expected=f"shape {wanted}, from lora_B and lora_A",
        found=f"{ref.shape} in {ref.file.name}",
        hint="this adapter was trained on another base; give that one with --base",
    )


def _check_form(
    source: AdapterSource, module: LoraModule, part: StoredPart, base: BaseIndex
) -> LorapackError | None:
    """Refuses what cannot be done to a weight as it is stored."""
    ref = part.ref
    known = not isinstance(ref, QuantisedRef) and not module.kernel
    repeats = module.residual is None or known
    turned = stores_transposed(module, base) and module.residual in _AS_STORED
    if not repeats or turned:
        return unrepeated_residual(source, module)
    if part.operation == "chunk" and not module.is_pair:
        return unscaled_rows(source, module, ref)
    if source.spec.config.use_rslora and base.naming.is_cut_with_others(ref.name):
        return rescaled_expert(source, module)
    return None
