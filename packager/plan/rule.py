"""One rule for each output tensor of a merged model; every adapter tensor is used once."""

from __future__ import annotations

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.dtype import MERGEABLE
from packager.errors import AdapterError, BaseError, LorapackError
from packager.plan.source import AdapterSource
from packager.plan.value import Delta, PlannedTensor
from packager.tensorfile import TensorRef

HEAD_NAME = "lm_head.weight"
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
        planned[name] = _plan_tensor(name, ref, targets.pop(name, None), source.name, dtype)
    if HEAD_NAME in targets and base.embedding is not None:
        module = targets.pop(HEAD_NAME)
        planned[HEAD_NAME] = _plan_tensor(HEAD_NAME, base.embedding, module, source.name, dtype)
    return planned, problems


def unties_head(planned: dict[str, PlannedTensor], base: BaseIndex) -> bool:
    """Tells whether the plan gives a tied model a head of its own."""
    head = base.head
    name = HEAD_NAME if head is None else head.name
    return base.ties_embeddings and name in planned and planned[name].rule == "lora"


def find_base_weight(module: LoraModule, base: BaseIndex) -> TensorRef | None:
    """Returns the base's weight below a module; of a tied head it is the embedding."""
    name = f"{module.module}.weight"
    if name == HEAD_NAME and base.head is None and base.ties_embeddings:
        return base.embedding
    return base.tensors.get(name)


def _plan_tensor(
    name: str, ref: TensorRef, module: LoraModule | None, adapter: str, dtype: str | None
) -> PlannedTensor:
    out = dtype if dtype is not None and ref.dtype in MERGEABLE else ref.dtype
    if module is None:
        rule = "copy" if out == ref.dtype else "cast"
        return PlannedTensor(name, out, ref.shape, "copy" if rule == "copy" else "cast", ref.name)
    delta = Delta(
        adapter=adapter,
        module=module.module,
        lora_a=module.lora_a.name,
        lora_b=module.lora_b.name,
        rank=module.rank,
        scale=module.scale,
        base_copy=None if module.base_copy is None else module.base_copy.name,
    )
    return PlannedTensor(name, out, ref.shape, "lora", ref.name, (delta,))


def _match_modules(
    source: AdapterSource, base: BaseIndex
) -> tuple[dict[str, LoraModule], list[LorapackError]]:
    targets: dict[str, LoraModule] = {}
    problems: list[LorapackError] = []
    unknown: list[str] = []
    unselected: list[str] = []
    for module in source.spec.modules.values():
        ref = find_base_weight(module, base)
        if ref is None:
            unknown.append(module.module)
            continue
        if not source.spec.config.selects(module.module):
            unselected.append(module.module)
        problem = _check_fit(source, module, ref)
        if problem is not None:
            problems.append(problem)
        targets[f"{module.module}.weight"] = module
    if unknown and not _stored_elsewhere(source):
        problems.insert(0, _unknown_modules(source, base, unknown))
    if unselected:
        problems.append(_unselected_modules(source, unselected))
    return targets, problems


def _stored_elsewhere(source: AdapterSource) -> bool:
    """Tells whether a feature names modules otherwise than the checkpoint does."""
    raw = source.spec.config.raw
    return any(raw.get(field) for field in ("target_parameters", "layer_replication"))


def _check_fit(source: AdapterSource, module: LoraModule, ref: TensorRef) -> LorapackError | None:
    if ref.dtype not in MERGEABLE:
        return BaseError(
            f"base tensor {ref.name!r} is of a type that nothing can be merged into",
            where=str(ref.file),
            expected="float32, bfloat16 or float16",
            found=ref.dtype,
            hint="give the 16-bit original of this base with --base",
        )
    wanted = (module.lora_b.shape[0], module.lora_a.shape[1])
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
