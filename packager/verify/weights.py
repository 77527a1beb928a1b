"""Level `weights`: tensors of an artefact recomputed from base + adapter, in float64.

The arithmetic is not the merge's own: the truth is made in float64 for whole row blocks, and the
stored value may differ from it by half a unit in the last place of its dtype, plus what float32
accumulation can lose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from packager.base import BaseIndex
from packager.digest import OnBytes
from packager.dtype import MANTISSA_BITS
from packager.merge import RowUpdate, bound_error
from packager.plan import PlannedTensor
from packager.plan.update import check_shares
from packager.quantisation.encoding import QuantisedRef
from packager.rowreader import as_matrix, read_rows
from packager.stream import single_threaded_torch
from packager.tensorfile import TensorRef
from packager.updatereader import AdapterTensors, find_source, read_updates
from packager.verify.fourbit import find_wrong_values
from packager.verify.proof import TensorFigure, WeightsCheck

SAMPLE_BYTES = 256 << 20
"""How much of an artefact `release` recomputes at once after writing."""

_KEPT_SHARE = 8
"""A sample reads at most this part of itself from one tensor that is as in the base."""

_WORKERS = 2
_BLOCK_ELEMENTS = 1 << 18
_EXPONENT_BITS = 0x7FF0000000000000
_PRECISION = {"F32": 2.0**-53}
"""Of the arithmetic, where it is not float32's."""
_MIN_EXPONENT = {"F32": -126, "BF16": -126, "F16": -14}
_LAYER = re.compile(r"\.(?:layers|h|blocks|layer)\.(\d+)\.")


@dataclass(frozen=True)
class Sources:
    """What an artefact is recomputed from.

    Attributes:
        base: The base.
        adapters: Adapter tensors.
    """

    base: BaseIndex
    adapters: AdapterTensors


def check_weights(
    planned: tuple[PlannedTensor, ...],
    artefact: BaseIndex,
    sources: Sources,
    *,
    sample_bytes: int | None = None,
    on_bytes: OnBytes | None = None,
) -> WeightsCheck:
    """Recomputes an artefact's tensors and accounts for all of them.

    Args:
        planned: What the artefact should hold.
        artefact: What it holds.
        sources: Base and adapters.
        sample_bytes: Check about so many bytes, every rule and kind of module at least once, of
            large kept tensors only blocks of rows; None checks everything.
        on_bytes: Told of artefact bytes checked.
    """
    chosen = planned if sample_bytes is None else choose_sample(planned, sample_bytes)
    most_kept = None if sample_bytes is None else sample_bytes // _KEPT_SHARE
    problems = _ledger(planned, artefact, sources)
    figures: list[TensorFigure] = []

    def check(tensor: PlannedTensor) -> tuple[TensorFigure | None, str]:
        result = _check_tensor(tensor, artefact, sources, most_kept)
        if on_bytes is not None:
            on_bytes(tensor.nbytes)
        return result

    with single_threaded_torch(), ThreadPoolExecutor(_WORKERS) as pool:
        for figure, problem in pool.map(check, chosen):
            figures += [figure] if figure is not None else []
            problems += [problem] if problem else []
    return WeightsCheck(
        checked=len(chosen),
        total=len(planned),
        by_rule=_count_rules(chosen, planned),
        adapter_tensors_used=len(_used_names(planned)),
        adapter_tensors_total=sum(len(tensors) for tensors in sources.adapters.values()),
        figures=tuple(figures),
        problems=tuple(problems),
    )


def _check_tensor(
    tensor: PlannedTensor, artefact: BaseIndex, sources: Sources, most_kept: int | None
) -> tuple[TensorFigure | None, str]:
    """Checks one tensor; one that the ledger has found wanting is passed over."""
    stored = artefact.tensors.get(tensor.name)
    if stored is None or (stored.dtype, stored.shape) != (tensor.dtype, tensor.shape):
        return None, ""
    ref = find_source(tensor, sources.base.tensors, sources.adapters)
    if tensor.four_bit is not None:
        updates = read_updates(
            tensor, ref, sources.adapters, torch.float64, base=sources.base.tensors
        )
        return None, find_wrong_values(tensor, stored, ref, updates)
    if tensor.deltas:
        return _check_merged(tensor, stored, ref, sources)
    return None, _check_kept(tensor, stored, ref, most_kept)


def choose_sample(
    planned: tuple[PlannedTensor, ...], sample_bytes: int
) -> tuple[PlannedTensor, ...]:
    """Chooses tensors: the first of each rule and kind of module, then evenly up to a budget."""
    total = sum(tensor.nbytes for tensor in planned)
    if total <= sample_bytes:
        return planned
    first: dict[tuple[str, str], PlannedTensor] = {}
    for tensor in planned:
        first.setdefault((tensor.rule, _LAYER.sub(".N.", tensor.name)), tensor)
    chosen = {tensor.name for tensor in first.values()}
    budget = sample_bytes - sum(tensor.nbytes for tensor in first.values())
    step = max(1, math.ceil(total / sample_bytes))
    for tensor in planned[::step]:
        if tensor.name not in chosen and tensor.nbytes <= budget:
            chosen.add(tensor.name)
            budget -= tensor.nbytes
    return tuple(tensor for tensor in planned if tensor.name in chosen)


def _ledger(planned: tuple[PlannedTensor, ...], artefact: BaseIndex, sources: Sources) -> list[str]:
    wanted = {tensor.name: tensor for tensor in planned}
    problems = [f"{name} is missing" for name in wanted.keys() - artefact.tensors.keys()]
    problems += [f"{name} is left over" for name in artefact.tensors.keys() - wanted.keys()]
    for name in wanted.keys() & artefact.tensors.keys():
        stored, tensor = artefact.tensors[name], wanted[name]
        if (stored.dtype, stored.shape) != (tensor.dtype, tensor.shape):
            problems.append(
                f"{name} is {stored.dtype} {stored.shape}, not {tensor.dtype} {tensor.shape}"
            )
    used = _used_names(planned)
    if len(used) != len(set(used)):
        problems.append("an adapter tensor is used twice")
    there = {(adapter, name) for adapter, names in sources.adapters.items() for name in names}
    problems += [f"adapter tensor {name} is not used" for _, name in there - set(used)]
    problems += check_shares(update for tensor in planned for update in tensor.deltas)
    return sorted(problems)


def _used_names(planned: Iterable[PlannedTensor]) -> list[tuple[str, str]]:
    return [used for tensor in planned for used in tensor.adapter_tensors]


def _count_rules(
    chosen: Iterable[PlannedTensor], planned: tuple[PlannedTensor, ...]
) -> dict[str, tuple[int, int]]:
    done = [tensor.rule for tensor in chosen]
    total = [tensor.rule for tensor in planned]
    return {rule: (done.count(rule), total.count(rule)) for rule in sorted(set(total))}


def _check_kept(
    tensor: PlannedTensor, stored: TensorRef, ref: TensorRef, most_bytes: int | None
) -> str:
    """Byte by byte, or to half a unit in the last place where the dtype is another.

    With `most_bytes`, of a larger tensor only blocks of rows that lie evenly over it.
    """
    rows, _ = _row_shape(ref.shape)
    blocks = list(_blocks(ref.shape))
    step = 1 if most_bytes is None else max(1, math.ceil(stored.nbytes / most_bytes))
    for first, count in blocks[::step]:
        found = read_rows(stored, first, count)
        wanted = read_rows(ref, first, count)
        if tensor.dtype == ref.dtype and not isinstance(ref, QuantisedRef):
            same = torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
        else:
            truth = wanted.double()
            error = (found.double() - truth).abs()
            same = bool((error <= 0.5 * unit_of(truth, tensor.dtype) * (1 + 1e-9)).all())
        if not same:
            end = min(first + count, rows)
            origin = "base" if tensor.source_adapter is None else "adapter"
            return f"{tensor.name} differs from the {origin} in rows {first} to {end - 1}"
    return ""


class _Sums:
    """Running squares and the largest error of one tensor."""

    def __init__(self) -> None:
        self.base = self.delta = self.lost = 0.0
        self.worst = 0.0
        self.bad_row: int | None = None


def _check_merged(
    tensor: PlannedTensor, stored: TensorRef, ref: TensorRef, sources: Sources
) -> tuple[TensorFigure, str]:
    updates = read_updates(tensor, ref, sources.adapters, torch.float64, base=sources.base.tensors)
    before, after = (as_matrix(item, by_output=tensor.by_output) for item in (ref, stored))
    sums = _Sums()
    for first, count in _blocks(before.shape):
        base = read_rows(before, first, count).double()
        found = read_rows(after, first, count).double()
        _compare_block(tensor.dtype, updates, first, (base, found), sums)
    figure = TensorFigure(
        name=tensor.name,
        rule=tensor.rule,
        layer=_layer_of(tensor.name),
        delta_ratio=math.sqrt(sums.delta / sums.base) if sums.base else 0.0,
        lost_to_rounding=math.sqrt(sums.lost / sums.delta) if sums.delta else 0.0,
        max_error_ulp=sums.worst,
    )
    if sums.bad_row is None:
        return figure, ""
    return figure, (
        f"{tensor.name} is not base + adapter: off by up to {sums.worst:.3g} units in the last "
        f"place, first in row {sums.bad_row}"
    )


def _compare_block(
    dtype: str,
    updates: tuple[RowUpdate, ...],
    first: int,
    values: tuple[Tensor, Tensor],
    sums: _Sums,
) -> None:
    """Adds one block of rows of (base, stored), float64, to the sums."""
    base, found = values
    truth = base.clone()
    for update in updates:
        update.apply(truth, first)
    unit = unit_of(truth, dtype)
    error = found.sub_(truth)
    sums.base += _square_sum(base)
    sums.delta += _square_sum(truth - base)
    sums.lost += _square_sum(error)
    error.abs_()
    worst = float((error / unit).max())
    if worst <= 0.5:
        sums.worst = max(sums.worst, worst)
        return
    # Where base and delta cancel, the result has a finer last place than what was added.
    coarse = float((error / unit_of(torch.maximum(base.abs(), truth.abs()), dtype)).max())
    sums.worst = max(sums.worst, coarse) if math.isfinite(coarse) else math.inf
    slack = bound_error(base, updates, first, _PRECISION.get(dtype, 2.0**-24))
    bad = ~(error <= 0.5 * unit + slack)  # catches NaN too
    if sums.bad_row is None and bool(bad.any()):
        sums.bad_row = first + int(bad.any(dim=1).nonzero()[0])


def _square_sum(values: Tensor) -> float:
    flat = values.flatten()
    return float(torch.dot(flat, flat))


def unit_of(values: Tensor, dtype: str) -> Tensor:
    """One unit in the last place of `dtype` at each value.

    The exponent bits of a float64, taken alone, are the power of two below its magnitude.
    """
    power = values.view(torch.int64).bitwise_and(_EXPONENT_BITS).view(torch.float64)
    return power.clamp_(min=2.0 ** _MIN_EXPONENT[dtype]).mul_(2.0 ** -MANTISSA_BITS[dtype])


def _row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and elements per row; a vector is many rows of one element."""
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


def _blocks(shape: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    rows, width = _row_shape(shape)
    if not rows or not width:
        return
    step = max(1, _BLOCK_ELEMENTS // width)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def _layer_of(name: str) -> int | None:
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None
