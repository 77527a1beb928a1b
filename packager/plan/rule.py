"""One rule for each output tensor of a merged model; every adapter tensor is used once."""

from __future__ import annotations

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.dtype import MERGEABLE
from packager.errors import AdapterError, BaseError, LorapackError
from packager.plan.source import AdapterSource
from packager.plan.update import Axis, Delta, Magnitude, Update, rule_of
from packager.plan.value import PlannedTensor
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.layer import CONV1D_MODELS, CONV1D_MODULES
from packager.tensorfile import TensorRef

HEAD_NAME = "lm_head.weight"
_OMITTED_PREFIX = "transformer."
"""What the checkpoints of GPT-2 on the Hub leave out of their names."""
_SHOWN = 3


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
    targets, problems = _match_modules(source, base)
    planned: dict[str, PlannedTensor] = {}
    for name, ref in base.tensors.items():
        planned[name] = _plan_tensor(name, ref, targets.pop(name, ()), dtype)
    if HEAD_NAME in targets and base.embedding is not None:
        updates = targets.pop(HEAD_NAME)
        planned[HEAD_NAME] = _plan_tensor(HEAD_NAME, base.embedding, updates, dtype)
    return planned, problems


def unties_head(planned: dict[str, PlannedTensor], base: BaseIndex) -> bool:
    """Tells whether the plan gives a tied model a head of its own."""
    head = base.head
    name = HEAD_NAME if head is None else head.name
    return base.ties_embeddings and name in planned and bool(planned[name].deltas)


def find_base_weight(module: LoraModule, base: BaseIndex) -> TensorRef | None:
    """Returns the base's weight below a module; of a tied head it is the embedding."""
    name = f"{module.module}.weight"
    if name == HEAD_NAME and base.head is None and base.ties_embeddings:
        return base.embedding
    if name in base.tensors or not name.startswith(_OMITTED_PREFIX):
        return base.tensors.get(name)
    omitted = not any(stored.startswith(_OMITTED_PREFIX) for stored in base.tensors)
    return base.tensors.get(name.removeprefix(_OMITTED_PREFIX)) if omitted else None


def stores_transposed(module: LoraModule, base: BaseIndex) -> bool:
    """Tells whether the base stores the weight below a module as (in_features, out_features).

    PEFT looks at the layer's class and corrects `fan_in_fan_out` by it, so that the field alone
    tells nothing of a single module.

    Source: PEFT 0.21, tuners/lora/model.py, _create_new_module: Conv1D and Linear.
    """
    return _uses_conv1d(base) and module.module.rpartition(".")[2] in CONV1D_MODULES


def _uses_conv1d(base: BaseIndex) -> bool:
    return base.config.get("model_type") in CONV1D_MODELS


def _plan_tensor(
    name: str, ref: TensorRef, updates: tuple[Update, ...], dtype: str | None
) -> PlannedTensor:
    out = dtype if dtype is not None and ref.dtype in MERGEABLE else ref.dtype
    if not updates:
        rule = "copy" if out == ref.dtype else "cast"
        rule = "dequantise" if isinstance(ref, QuantisedRef) else rule
        return PlannedTensor(name, out, ref.shape, rule, ref.name)
    return PlannedTensor(name, out, ref.shape, rule_of(updates), ref.name, updates)


def _plan_updates(module: LoraModule, adapter: str, base: BaseIndex) -> tuple[Update, ...]:
    delta = _plan_delta(module, adapter, base)
    if module.magnitude is None:
        return (delta,)
    axis: Axis = "column" if delta.transposed else "row"
    return (delta, Magnitude(adapter, module.module, module.magnitude.name, axis))


def _plan_delta(module: LoraModule, adapter: str, base: BaseIndex) -> Delta:
    return Delta(
        adapter=adapter,
        module=module.module,
        lora_a=module.lora_a.name,
        lora_b=module.lora_b.name,
        rank=module.rank,
        scale=module.scale,
        base_copy=None if module.base_copy is None else module.base_copy.name,
        transposed=stores_transposed(module, base),
    )


def _match_modules(
    source: AdapterSource, base: BaseIndex
) -> tuple[dict[str, tuple[Update, ...]], list[LorapackError]]:
    targets: dict[str, tuple[Update, ...]] = {}
    problems: list[LorapackError] = []
    unknown: list[str] = []
    unselected: list[str] = []
    for module in source.spec.modules.values():
        ref = find_base_weight(module, base)
        name = f"{module.module}.weight"
        if ref is not None and name != HEAD_NAME:
            name = ref.name
        if ref is None or name in targets:
            unknown.append(module.module)
            continue
        if not source.spec.config.selects(module.module):
            unselected.append(module.module)
        problem = _check_fit(source, module, ref, base)
        if problem is not None:
            problems.append(problem)
        targets[name] = _plan_updates(module, source.name, base)
    if unknown and not _stored_elsewhere(source):
        problems.insert(0, _unknown_modules(source, base, unknown))
    if unselected:
        problems.append(_unselected_modules(source, unselected))
    return targets, problems


def _stored_elsewhere(source: AdapterSource) -> bool:
    """Tells whether a feature names modules otherwise than the checkpoint does."""
    raw = source.spec.config.raw
    return any(raw.get(field) for field in ("target_parameters", "layer_replication"))


def _check_fit(
    source: AdapterSource, module: LoraModule, ref: TensorRef, base: BaseIndex
) -> LorapackError | None:
    if ref.dtype not in MERGEABLE:
        return BaseError(
            f"base tensor {ref.name!r} is of a type that nothing can be merged into",
            where=str(ref.file),
            expected="float32, bfloat16 or float16",
            found=ref.dtype,
            hint="give the 16-bit original of this base with --base",
        )
    wanted = (module.lora_b.shape[0], module.lora_a.shape[1])
    if stores_transposed(module, base):
        wanted = wanted[::-1]
    flagged = bool(source.spec.config.raw.get("fan_in_fan_out"))
    if flagged and wanted[0] == wanted[1] and not _uses_conv1d(base):
        return _untold_layout(source, module, base)
    copy_fits = module.base_copy is None or module.base_copy.shape == ref.shape
    if wanted == ref.shape and copy_fits:
        return None
    return AdapterError(
        f"module {module.module!r} of the adapter has another width than the base",
        where=str(source.spec.directory),
        expected=f"shape {wanted}, from lora_B and lora_A",
        found=f"{ref.shape} in {ref.file.name}",
        hint="this adapter was trained on another base; give that one with --base",
    )


def _untold_layout(source: AdapterSource, module: LoraModule, base: BaseIndex) -> LorapackError:
    return AdapterError(
        f"it cannot be told which way round the base stores the weight of {module.module!r}",
        where=str(source.spec.directory),
        expected="fan_in_fan_out only on " + ", ".join(CONV1D_MODELS),
        found=f"model_type {base.config.get('model_type')!r}"[:80],
        hint="if the layer is torch's Linear, set fan_in_fan_out to false in adapter_config.json",
    )


def _unknown_modules(source: AdapterSource, base: BaseIndex, unknown: list[str]) -> AdapterError:
    total = len(source.spec.modules)
    like = next((name for name in base.tensors if name.endswith("proj.weight")), None)
    like = like or next(iter(base.tensors), "nothing")
    return AdapterError(
        f"{len(unknown)} of {total} adapted modules are not in the base; PEFT and vLLM would "
        "drop them without a word and answer as the base",
        where=str(source.spec.directory),
        expected=f"names like {like.removesuffix('.weight')!r}",
        found=_listed(unknown),
        hint="wrong base or a wrong prefix: give the base trained on with --base, or save the "
        "adapter again from the model class that it was trained with",
    )


def _unselected_modules(source: AdapterSource, unselected: list[str]) -> AdapterError:
    return AdapterError(
        f"{len(unselected)} modules of the adapter are left over: adapter_config.json does not "
        "select them, so PEFT would not apply them",
        where=str(source.spec.directory),
        expected="every module in target_modules",
        found=_listed(unselected),
        hint="restore the adapter_config.json that was saved with these weights",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
