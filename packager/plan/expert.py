"""Adapters of parameters: which one each pair is for, and its shares for the stored tensors.

Source: PEFT 0.21, tuners/lora/layer.py (ParamWrapper), tuners/tuners_utils.py
(_inject_parameters).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packager.adapter.parameter import ParameterPair
from packager.base import BaseIndex
from packager.base.naming import StoredPart
from packager.dtype import MERGEABLE
from packager.errors import AdapterError, BaseError, LorapackError
from packager.plan.misfit import is_dropped
from packager.plan.source import AdapterSource
from packager.plan.update import Delta, PartDelta, Update
from packager.tensorfile import tensor_bytes

# Source: transformers 5.23, models/*/modeling_*.py: the order in which modules that hold several
# parameters define them.
PARAMETER_ORDER = (
    "weight", "bias", "w1", "v1", "gate_up_proj", "gate_up_proj_bias", "gate_proj", "up_proj",
    "up_proj_bias", "w2", "down_proj", "down_proj_bias",
)  # fmt: skip
# Source: transformers 5.23, `use_experts_implementation(is_transposed=True)`.
TRANSPOSED_EXPERTS = frozenset({"aria", "aria_text", "gpt_oss", "openai_privacy_filter"})
"""Model types whose experts are held as (experts, in_features, out_features)."""
_FIRST_ORIENTED = (0, 19, 1)
STACKS_KEPT = 4
"""Factors B of fused experts that stay in memory, whole and as stored: those of two parameters in
each of two files that are written at a time."""


def plan_parameters(
    source: AdapterSource, base: BaseIndex
) -> tuple[dict[str, tuple[Update, ...]], list[LorapackError]]:
    """Plans the updates of parameters that are adapted by themselves.

    Returns:
        Stored tensor → its updates, and every problem found.
    """
    updates: dict[str, tuple[Update, ...]] = {}
    problems: list[LorapackError] = []
    modules: dict[str, list[ParameterPair]] = {}
    for pair in source.spec.parameters:
        modules.setdefault(pair.module, []).append(pair)
    for module, pairs in modules.items():
        named = _name_pairs(source, base, module, pairs)
        if isinstance(named, LorapackError):
            problems.append(named)
            continue
        cuts = [_cut(source, base, parameter, pair) for parameter, pair in named]
        problems += [cut for cut in cuts if isinstance(cut, LorapackError)]
        fitting = [cut for cut in cuts if isinstance(cut, _Cut)]
        turned = _sibling_turned(fitting)
        for cut in fitting:
            for name, update in _plan_shares(source, base, cut, turned):
                updates[name] = (*updates.get(name, ()), update)
    return updates, problems


def expert_bytes(source: AdapterSource) -> int:
    """Returns what the factors of parameters take in memory while they are merged.

    The B of several whole as they are stored, one of them put in another order, and the pairs of
    two experts in float64.
    """
    pairs, config = source.spec.parameters, source.spec.config
    whole = sorted((pair.lora_b.nbytes for pair in pairs), reverse=True)
    of_experts = (
        sum(tensor_bytes("F64", ref.shape) for ref in pair.tensors)
        // max(1, pair.lora_a.shape[0] // config.rank_of(pair.module))
        for pair in pairs
    )
    return sum(whole[:STACKS_KEPT]) + max(whole, default=0) + 2 * max(of_experts, default=0)


@dataclass(frozen=True)
class _Cut:
    """A pair of factors and the stored tensors of its parameter, which fit each other.

    Attributes:
        parameter: Its dotted name.
        pair: The factors.
        parts: The stored tensors, in order.
        experts: Matrices of the parameter; 1 for a matrix.
        plain: Whether rows of the update can be rows of `lora_b`.
        turned: Whether they can be columns of `lora_a`.
    """

    parameter: str
    pair: ParameterPair
    parts: tuple[StoredPart, ...]
    experts: int
    plain: bool
    turned: bool

    @property
    def rows(self) -> int:
        """Rows of one matrix of a stored tensor."""
        return self.parts[0].ref.shape[-2]


def _name_pairs(
    source: AdapterSource, base: BaseIndex, module: str, pairs: Sequence[ParameterPair]
) -> list[tuple[str, ParameterPair]] | LorapackError:
    """Finds out which parameter each pair of a module is for."""
    config = source.spec.config
    known = frozenset() if is_dropped(source, module, base) else base.naming.below(module)
    held = {name for name in known if config.selects_parameter(module, name)}
    ordered = [name for name in PARAMETER_ORDER if name in held]
    depths = sorted(pair.depth for pair in pairs)
    clear = len(ordered) == len(held) or len(held) == 1
    if clear and depths == list(range(len(held))):
        names = ordered or sorted(held)
        # The wrapper of the parameter that is defined last is the outermost.
        return [(f"{module}.{names[-1 - pair.depth]}", pair) for pair in pairs]
    return AdapterError(
        f"it cannot be told which parameters of {module!r} the adapter was trained on",
        where=str(source.spec.directory),
        expected=f"{len(held)} pairs, for {', '.join(sorted(held)) or 'no parameter of the base'}",
        found=f"{len(pairs)} pairs",
        hint="give the base trained on with --base, and the adapter_config.json that was saved "
        "with these weights",
    )


def _cut(
    source: AdapterSource, base: BaseIndex, parameter: str, pair: ParameterPair
) -> _Cut | LorapackError:
    parts = base.naming.find(parameter)
    problem = _check_parts(base, parameter, parts)
    if problem is not None:
        return problem
    first = parts[0]
    shape = first.ref.shape
    if first.operation == "experts":
        experts = len(parts) // first.parts
    else:
        experts = shape[0] if len(shape) == 3 else 1
    rank = source.spec.config.rank_of(parameter)
    rows, width = shape[-2] * first.parts, shape[-1]
    inner = (pair.lora_a.shape[0], pair.lora_b.shape[1])
    outer = (pair.lora_b.shape[0], pair.lora_a.shape[1])
    plain, turned = outer == (rows, width), len(shape) == 3 or first.operation == "experts"
    turned = turned and outer == (width, rows)
    if inner == (rank * experts, rank * experts) and (plain or turned):
        return _Cut(parameter, pair, parts, experts, plain, turned)
    return AdapterError(
        f"the adapter of parameter {parameter!r} does not fit the base",
        where=str(source.spec.directory),
        expected=f"rank {rank} for each of {experts} matrices of {rows} × {width}",
        found=f"lora_A {pair.lora_a.shape}, lora_B {pair.lora_b.shape}",
        hint="this adapter was trained on another base, or its adapter_config.json belongs to "
        "another training",
    )


def _check_parts(
    base: BaseIndex, parameter: str, parts: Sequence[StoredPart]
) -> LorapackError | None:
    shapes = {part.ref.shape for part in parts}
    dtypes = {part.ref.dtype for part in parts}
    ranks = {len(shape) for shape in shapes}
    stacked = {2} if parts and parts[0].operation == "experts" else {2, 3}
    if len(shapes) == 1 and ranks <= stacked and parts[0].operation not in ("chunk", "unknown"):
        if dtypes <= set(MERGEABLE):
            return None
        return BaseError(
            f"parameter {parameter!r} is stored in a type that nothing can be merged into",
            where=str(base.directory),
            expected="float32, bfloat16 or float16",
            found=", ".join(sorted(dtypes)),
            hint="give the 16-bit original of this base with --base",
        )
    return AdapterError(
        f"the adapter is for parameter {parameter!r}, which cannot be found in the base",
        where=str(base.directory),
        expected="the whole parameter, or all its experts in one shape",
        found=f"{len(parts)} tensors of {len(shapes)} shapes",
        hint="give the base trained on with --base; or keep the adapter separate: --target adapter",
    )


def _sibling_turned(cuts: Sequence[_Cut]) -> bool | None:
    """Tells how PEFT took the stacks of a module, where one of them is not square."""
    told = {cut.turned for cut in cuts if cut.plain != cut.turned and cut.experts > 1}
    return told.pop() if len(told) == 1 else None


def _is_turned(source: AdapterSource, base: BaseIndex, cut: _Cut, sibling: bool | None) -> bool:
    """Tells which factor of a pair the rows of its matrices belong to.

    Source: PEFT, tuners/lora/layer.py, ParamWrapper.update_layer and get_delta_weight: until 0.18
    always A; in 0.19.0 B for transposed experts; since then B for all others.
    """
    if cut.plain != cut.turned:
        return cut.turned
    if sibling is not None:
        return sibling
    version = _peft_version(source.spec.config.raw)
    transposed = any(kind in TRANSPOSED_EXPERTS for kind in _kinds(base.config))
    if version < _FIRST_ORIENTED:
        return version < _FIRST_ORIENTED[:2] or not transposed
    return transposed


def _kinds(config: Mapping[str, object]) -> tuple[object, ...]:
    inner = config.get("text_config")
    return (config.get("model_type"), inner.get("model_type") if isinstance(inner, dict) else None)


def _peft_version(raw: Mapping[str, object]) -> tuple[int, ...]:
    """Returns the release that saved an adapter; before 0.18 none is noted."""
    found = re.match(r"(\d{1,5})\.(\d{1,5})(?:\.(\d{1,5}))?", str(raw.get("peft_version", "")))
    return tuple(int(part or 0) for part in found.groups()) if found else (0, 17, 0)


def _plan_shares(
    source: AdapterSource, base: BaseIndex, cut: _Cut, sibling: bool | None
) -> list[tuple[str, Update]]:
    config, pair = source.spec.config, cut.pair
    rank, scale = config.rank_of(cut.parameter), config.scale_of(cut.parameter)
    names = (source.name, cut.parameter, pair.lora_a.name, pair.lora_b.name)
    if cut.experts == 1 and len(cut.parts) == 1:
        return [(cut.parts[0].ref.name, Delta(*names, rank, scale, transposed=not cut.plain))]
    turned = _is_turned(source, base, cut, sibling)
    return [
        (
            part.ref.name,
            PartDelta(
                *names,
                rank,
                scale,
                experts=cut.experts,
                expert=part.expert,
                transposed=turned,
                first_output=part.part * cut.rows,
                outputs=cut.rows,
                first_row=0,
                share=share,
                shares=len(cut.parts),
                kind="expert-lora" if cut.experts > 1 else "part-lora",
            ),
        )
        for share, part in enumerate(cut.parts)
    ]
