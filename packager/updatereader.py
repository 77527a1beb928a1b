"""A plan's updates with their tensors read: ready to be applied to rows.

Most need only the tensors that they name. One that depends on the whole tensor, such as DoRA by
columns, takes a pass over it here, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from packager.factorreader import (
    read_factors,
    read_finite,
    read_magnitude,
    read_part,
    read_token_rows,
)
from packager.merge import (
    Factors,
    ModuleRows,
    RowMagnitude,
    RowUpdate,
    Scaling,
    StoredRows,
    VectorAddition,
    cut_singular,
    project_columns,
)
from packager.plan import (
    Addition,
    Companion,
    Delta,
    Magnitude,
    ModuleUpdate,
    PartDelta,
    PlannedTensor,
    Residual,
    Rounding,
    RowReplacement,
)
from packager.quantisation.encoding import EightBitLoad, FourBitLoad, QuantisedRef
from packager.quantisation.values import read_values
from packager.rowreader import OpenFiles, as_matrix, read_rows, read_whole
from packager.tensorfile import TensorRef

AdapterTensors = Mapping[str, Mapping[str, TensorRef]]
"""Adapter name → tensor name → where it lies."""

_PASS_ELEMENTS = 1 << 18


def adapter_tensors(adapters: Mapping[str, Iterable[TensorRef]]) -> AdapterTensors:
    """Indexes the tensors of adapters, which are given by name."""
    return {name: {ref.name: ref for ref in refs} for name, refs in adapters.items()}


def find_source(
    tensor: PlannedTensor, base: Mapping[str, TensorRef], adapters: AdapterTensors
) -> TensorRef:
    """Returns the stored tensor that a planned one starts from."""
    if tensor.source_adapter is None:
        return base[tensor.source]
    return adapters[tensor.source_adapter][tensor.source]


def read_updates(
    tensor: PlannedTensor,
    ref: TensorRef,
    adapters: AdapterTensors,
    dtype: torch.dtype,
    files: OpenFiles | None = None,
    *,
    base: Mapping[str, TensorRef],
) -> tuple[RowUpdate, ...]:
    """Reads what a tensor's updates need into memory.

    Args:
        tensor: What is made.
        ref: What its rows start from, as `find_source` gives it.
        adapters: Adapter tensors.
        dtype: Of the arithmetic.
        files: Files that are open already.
        base: Base tensors by name, of which a module may need several.

    Raises:
        AdapterError: A tensor of the adapter holds NaN or infinity, or PEFT does not merge a
            module.
        InputError: A file cannot be read.
    """
    made: list[RowUpdate] = []
    with ExitStack() as stack:
        opened = files or OpenFiles(stack)
        for number, update in enumerate(tensor.deltas):
            refs = adapters[update.adapter]
            if isinstance(update, Delta):
                made.append(read_factors(update, refs, dtype, opened))
            elif isinstance(update, PartDelta):
                made.append(read_part(update, refs, dtype, files))
            elif isinstance(update, Rounding):
                made.append(StoredRows(partial(read_values, _rounded(ref, update))))
            elif isinstance(update, Residual):
                made.append(_read_residual(update, ref, made, dtype, opened))
            elif isinstance(update, RowReplacement):
                made.append(read_token_rows(update, refs[update.rows], dtype, opened))
            elif isinstance(update, Addition):
                values = read_finite(refs[update.values], opened)
                made.append(VectorAddition(values.to(dtype), update.scale))
            elif isinstance(update, ModuleUpdate):
                reader = _ModuleReader(tensor, number, ref, base, adapters)
                made.append(reader.read(dtype))
            elif update.axis == "row":
                made.append(RowMagnitude(read_magnitude(update, refs, opened)))
            else:
                made.append(_read_scaling(tensor, number, ref, base, adapters, opened))
    return tuple(made)


def _rounded(ref: TensorRef, update: Rounding) -> QuantisedRef:
    """Returns a weight as bitsandbytes leaves it."""
    nf4 = update.loaded_in == "nf4"
    encoding = FourBitLoad(ref, "nf4", double=False) if nf4 else EightBitLoad(ref)
    return QuantisedRef(ref.name, ref.file, ref.offset, ref.dtype, ref.shape, encoding)


def _read_residual(
    update: Residual,
    ref: TensorRef,
    before: Sequence[RowUpdate],
    dtype: torch.dtype,
    files: OpenFiles,
) -> Factors:
    """Works out again what was taken out of a weight; by singular values, with all of it in memory.

    Args:
        update: What was.
        ref: The weight.
        before: Updates of it that come first.
        dtype: Of the arithmetic.
        files: Files that are open already.
    """

    def blocks() -> Iterator[tuple[int, Tensor]]:
        return _blocks(ref, before, dtype, files)

    if update.kind == "olora":
        found = project_columns(blocks, update.rank, update.scale)
    else:
        weight = torch.empty(as_matrix(ref).shape, dtype=torch.float64)
        for first, block in blocks():
            weight[first : first + block.shape[0]] = block
        found = cut_singular(weight, update.rank, largest=update.kind == "pissa")
    return Factors(found.lora_a.to(dtype), found.lora_b.to(dtype), found.scale)


def _read_scaling(
    tensor: PlannedTensor,
    number: int,
    ref: TensorRef,
    base: Mapping[str, TensorRef],
    adapters: AdapterTensors,
    files: OpenFiles,
) -> Scaling:
    """Reads the magnitudes of columns and divides by the norms, which takes a pass in float64."""
    update = tensor.deltas[number]
    assert isinstance(update, Magnitude)
    updates = read_updates(_before(tensor, number), ref, adapters, torch.float64, files, base=base)
    norms = _column_norms(ref, updates, files)
    return Scaling(read_magnitude(update, adapters[update.adapter], files) / norms)


def _before(tensor: PlannedTensor, number: int) -> PlannedTensor:
    """Returns the tensor as it is before one of its updates."""
    return replace(tensor, deltas=tensor.deltas[:number])


@dataclass(frozen=True)
class _ModuleReader:
    """Makes a parameter of a module that PEFT merges as a whole.

    Attributes:
        tensor: What the parameter is planned to be.
        number: Of the update.
        ref: What the tensor's rows start from.
        base: Base tensors by name.
        adapters: Adapter tensors.
    """

    tensor: PlannedTensor
    number: int
    ref: TensorRef
    base: Mapping[str, TensorRef]
    adapters: AdapterTensors

    def read(self, dtype: torch.dtype) -> ModuleRows:
        """Merges the module.

        Raises:
            AdapterError: PEFT does not merge it, or a tensor of the adapter holds NaN or infinity.
            InputError: A file cannot be read.
        """
        return ModuleRows(self._make(dtype), lambda: self._make(torch.float32))

    def _make(self, dtype: torch.dtype) -> Tensor:
        from packager.tuner import ModuleJob, merge_module

        update = self.tensor.deltas[self.number]
        assert isinstance(update, ModuleUpdate)
        refs = self.adapters[update.adapter]
        with ExitStack() as stack:
            files = OpenFiles(stack)
            parameters = {update.parameter: self._own(dtype, files)}
            for companion in update.companions:
                parameters[companion.parameter] = self._companion(companion, dtype, files)
            tensors = {name: read_finite(refs[name], files) for name in update.reads}
        job = ModuleJob(
            base=_folder(next(iter(self.base.values()))),
            adapter=refs[update.reads[0]].file.parent,
            module=update.module,
            parameters=parameters,
            tensors=tensors,
        )
        made = merge_module(job, dtype)[update.parameter]
        return made.reshape(as_matrix(self.ref).shape)

    def _own(self, dtype: torch.dtype, files: OpenFiles) -> Tensor:
        return self._whole(self.ref, _before(self.tensor, self.number), dtype, files)

    def _companion(self, companion: Companion, dtype: torch.dtype, files: OpenFiles) -> Tensor:
        tensor = replace(
            self.tensor, name=companion.source, source=companion.source, deltas=companion.updates,
            source_adapter=companion.source_adapter,
        )  # fmt: skip
        ref = find_source(tensor, self.base, self.adapters)
        return self._whole(ref, replace(tensor, shape=ref.shape), dtype, files)

    def _whole(
        self, ref: TensorRef, tensor: PlannedTensor, dtype: torch.dtype, files: OpenFiles
    ) -> Tensor:
        values = read_whole(ref, files).to(dtype)
        updates = read_updates(tensor, ref, self.adapters, dtype, files, base=self.base)
        for update in updates:
            update.apply(values.view(as_matrix(ref).shape), 0)
        return values


def _folder(ref: TensorRef) -> Path:
    """Returns the folder of a base, which has its configuration, that a tensor lies in."""
    places = (ref.file.parent, *ref.file.parents)
    return next((place for place in places if (place / "config.json").exists()), places[0])


def _column_norms(ref: TensorRef, updates: Sequence[RowUpdate], files: OpenFiles) -> Tensor:
    """Returns the norm of each column of the updated matrix, shape (width,), float64."""
    squares = torch.zeros(as_matrix(ref).shape[1], dtype=torch.float64)
    for _, block in _blocks(ref, updates, torch.float64, files):
        squares += block.square_().sum(dim=0)
    return squares.sqrt_()


def _blocks(
    ref: TensorRef, updates: Sequence[RowUpdate], dtype: torch.dtype, files: OpenFiles
) -> Iterator[tuple[int, Tensor]]:
    """Makes a pass over an updated matrix: (first row, rows in float64) of each block."""
    matrix = as_matrix(ref)
    rows, width = matrix.shape
    step = max(1, _PASS_ELEMENTS // max(1, width))
    for first in range(0, rows, step):
        block = read_rows(matrix, first, min(step, rows - first), files).to(dtype)
        for update in updates:
            update.apply(block, first)
        yield first, block.double()
