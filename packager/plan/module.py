"""Modules of other tuners than LoRA: which tensors of an adapter are whose, by name alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packager.adapter.tuner import KNOWN
from packager.base import BaseIndex
from packager.dtype import MERGEABLE
from packager.errors import AdapterError, BaseError, LorapackError
from packager.plan.change import HEAD_NAME, find_saved
from packager.plan.misfit import is_dropped, unselected_modules
from packager.plan.source import AdapterSource
from packager.plan.target import TargetPlan
from packager.plan.update import Companion, ModuleUpdate, Residual, Update
from packager.plan.value import PlannedTensor
from packager.quantisation.layer import find_linear, is_head
from packager.tensorfile import TensorRef, tensor_bytes

# Source: PEFT 0.21, src/peft/utils/save_and_load.py: names begin with the wrapper's prefix; what
# all modules share lies beside the wrapped model, not in it.
_WRAPPER = "base_model.model."
_SHOWN = 3


@dataclass(frozen=True)
class TunedModule:
    """One module of an adapter.

    Attributes:
        module: Dotted name.
        parameters: Its own as the base has them, by name within the module.
        outputs: Their names in the merged model.
        saved: Names within it of those that the adapter holds as a whole: biases that were trained
            in place.
        tensors: The adapter's that belong to it alone.
        shared: The adapter's that belong to all its modules.
    """

    module: str
    parameters: Mapping[str, TensorRef]
    outputs: Mapping[str, str]
    tensors: tuple[TensorRef, ...]
    shared: tuple[TensorRef, ...]
    saved: frozenset[str] = frozenset()


def is_module_tuner(source: AdapterSource) -> bool:
    """Tells whether an adapter is of a tuner whose modules are merged as a whole."""
    return source.spec.config.peft_type not in KNOWN


def plan_modules(
    source: AdapterSource, base: BaseIndex
) -> tuple[dict[str, tuple[Update, ...]], list[LorapackError]]:
    """Plans the updates of an adapter of another tuner than LoRA.

    Returns:
        Output tensor → its updates, and every problem found.
    """
    modules, problems = find_modules(source, base)
    problems += _check_modules(source, base, modules)
    targets: dict[str, tuple[Update, ...]] = {}
    for number, module in enumerate(modules):
        counted = (*module.tensors, *(module.shared if number == 0 else ()))
        for place, parameter in enumerate(module.parameters):
            update = _plan_update(source, module, parameter, counted if place == 0 else ())
            targets[module.outputs[parameter]] = (update,)
    return targets, problems


def module_bytes(target: TargetPlan) -> int:
    """Returns what merging the largest tensor takes that is merged as a whole.

    Of one that PEFT merges: its values before and after, what is added, and a copy of one of them,
    in float64. Of one that is decomposed into singular values: itself, LAPACK's copy of it, both
    factors, and what LAPACK works in, which is five squares of the shorter side.
    """
    merged = target.tensors if target.gguf is None else target.gguf.merged
    return max(map(_tensor_bytes, merged), default=0)


def _tensor_bytes(tensor: PlannedTensor) -> int:
    size = tensor_bytes("F64", tensor.shape)
    sizes = [0]
    for update in tensor.deltas:
        if isinstance(update, ModuleUpdate):
            sizes.append(4 * size)
        elif isinstance(update, Residual) and update.kind != "olora":
            short = min(tensor.shape)
            square = tensor_bytes("F64", (short, short))
            sizes.append(3 * size + 6 * square)
    return max(sizes)


def find_modules(
    source: AdapterSource, base: BaseIndex
) -> tuple[tuple[TunedModule, ...], list[LorapackError]]:
    """Finds the modules of an adapter: of its tensors' names, or else of its configuration.

    Returns:
        Modules in the order of the adapter's tensors, and what could not be found.
    """
    taken = {ref.name for refs in source.spec.saved.values() for ref in refs}
    own: dict[str, list[TensorRef]] = {}
    shared: list[TensorRef] = []
    unknown: list[TensorRef] = []
    for ref in source.spec.tensors:
        if ref.name in taken:
            continue
        if not ref.name.startswith(_WRAPPER):
            shared.append(ref)
            continue
        module = _module_of(ref.name.removeprefix(_WRAPPER), base)
        if module is not None and not is_dropped(source, module, base):
            own.setdefault(module, []).append(ref)
        else:
            unknown.append(ref)
    problems: list[LorapackError] = [_unknown(source, base, unknown)] if unknown else []
    if shared and not own:
        own = {name: [] for name in _selected(source, base)}
    if not own and not unknown:
        problems.append(_nothing(source))
    modules = (_tuned(source, name, (refs, shared), base) for name, refs in own.items())
    return tuple(modules), problems


def _module_of(name: str, base: BaseIndex) -> str | None:
    """Returns the longest beginning of a tensor's name that is a module of the base."""
    parts = name.split(".")
    beginnings = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((part for part in beginnings if _parameters(part, base)), None)


def _parameters(module: str, base: BaseIndex) -> dict[str, tuple[str, TensorRef]]:
    """Returns a module's own parameters: name within it → output name and stored tensor."""
    found = {}
    for leaf in sorted(base.naming.below(module), key=lambda name: (name != "weight", name)):
        ref = base.naming.find_tensor(f"{module}.{leaf}")
        if ref is not None:
            found[leaf] = (ref.name, ref)
    tied = base.head is None and base.ties_embeddings and base.embedding is not None
    if not found and tied and base.naming.spell(f"{module}.weight") == HEAD_NAME:
        assert base.embedding is not None
        found["weight"] = (HEAD_NAME, base.embedding)
    return found


def _tuned(
    source: AdapterSource,
    module: str,
    tensors: tuple[Iterable[TensorRef], Iterable[TensorRef]],
    base: BaseIndex,
) -> TunedModule:
    found = _parameters(module, base)
    stored = {leaf: ref for leaf, (_, ref) in found.items()}
    kept = {leaf: find_saved(source, f"{module}.{leaf}") for leaf in stored}
    saved = {leaf: ref for leaf, ref in kept.items() if ref is not None}
    return TunedModule(
        module,
        {**stored, **saved},
        {leaf: name for leaf, (name, _) in found.items()},
        tuple(tensors[0]),
        tuple(tensors[1]),
        frozenset(saved),
    )


def _selected(source: AdapterSource, base: BaseIndex) -> list[str]:
    """Returns the linear layers that the configuration selects, where no tensor names them."""
    linear = filter(None, map(find_linear, base.tensors.values()))
    config = source.spec.config
    return [name for name in linear if config.selects(name) and not is_head(name)]


def _plan_update(
    source: AdapterSource, module: TunedModule, parameter: str, counted: tuple[TensorRef, ...]
) -> ModuleUpdate:
    return ModuleUpdate(
        adapter=source.name,
        module=module.module,
        parameter=parameter,
        tuner=source.spec.config.peft_type.lower(),
        reads=tuple(ref.name for ref in (*module.tensors, *module.shared)),
        tensors=tuple(ref.name for ref in counted),
        companions=tuple(
            Companion(name, ref.name, source.name if name in module.saved else None)
            for name, ref in module.parameters.items()
            if name != parameter
        ),
    )


def _check_modules(
    source: AdapterSource, base: BaseIndex, modules: tuple[TunedModule, ...]
) -> list[LorapackError]:
    problems: list[LorapackError] = []
    config = source.spec.config
    names = [module.module for module in modules]
    if config.target_modules is not None:
        unselected = [name for name in names if not config.selects(name)]
        problems += [unselected_modules(source, unselected)] if unselected else []
    embedding = base.embedding
    for module in modules:
        for ref in module.parameters.values():
            if ref.dtype not in MERGEABLE:
                problems.append(_unmergeable(ref))
        outputs = module.outputs.values()
        if embedding is not None and base.ties_embeddings and embedding.name in outputs:
            problems.append(_tied(source, module))
    return problems


def _unmergeable(ref: TensorRef) -> BaseError:
    return BaseError(
        f"base tensor {ref.name!r} is of a type that nothing can be merged into",
        where=str(ref.file),
        expected="float32, bfloat16 or float16",
        found=ref.dtype,
        hint="give the 16-bit original of this base with --base",
    )


def _tied(source: AdapterSource, module: TunedModule) -> AdapterError:
    return AdapterError(
        f"{source.spec.config.peft_type.lower()!r} on the embedding cannot be merged: the head "
        "is the same tensor",
        where=str(source.spec.directory),
        expected="an embedding with a head of its own",
        found=module.module,
        hint="keep the adapter separate: --target adapter",
    )


def _nothing(source: AdapterSource) -> AdapterError:
    return AdapterError(
        "the adapter adapts no module of the base",
        where=str(source.spec.directory),
        expected="tensors of modules, or target_modules that select some",
        found=f"{len(source.spec.tensors)} tensors",
        hint="save the adapter again with PEFT's save_pretrained",
    )


def _unknown(source: AdapterSource, base: BaseIndex, unknown: list[TensorRef]) -> AdapterError:
    total = len(source.spec.tensors)
    like = next((name for name in base.tensors if name.endswith(".weight")), "nothing")
    shown = ", ".join(repr(ref.name) for ref in unknown[:_SHOWN])
    more = len(unknown) - _SHOWN
    return AdapterError(
        f"{len(unknown)} of {total} tensors of the adapter belong to no module of the base; PEFT "
        "would drop them without a word",
        where=str(source.spec.directory),
        expected=f"names like {_WRAPPER + like.removesuffix('.weight') + '.…'!r}",
        found=f"{shown} and {more} more" if more > 0 else shown,
        hint="wrong base or a wrong prefix: give the base trained on with --base; a module that "
        "the base stores within another tensor can only be kept separate: --target adapter",
    )
