"""Tensors that PEFT saved with an adapter though others hold the same: they have to be equal."""

from __future__ import annotations

import math

import torch

from packager.base import BaseIndex
from packager.errors import AdapterError, BaseMismatchError
from packager.plan import AdapterSource, Copy
from packager.plan.rule import plan_tensors
from packager.rowreader import read_rows
from packager.tensorfile import TensorRef

_BLOCK_ELEMENTS = 1 << 20


def check_base_copies(source: AdapterSource, base: BaseIndex) -> None:
    """Compares every repeated tensor; of the base's, after the rounding to the dtype of training.

    PEFT loads such a copy over the base's weight, so that one which differs is part of what was
    trained, or was saved from another base.

    Raises:
        BaseMismatchError: A copy differs from the base.
        AdapterError: Two tensors that PEFT ties differ.
        InputError: A file cannot be read.
    """
    planned, _ = plan_tensors(source, base, None)
    own = {ref.name: ref for ref in source.spec.tensors}
    for tensor in planned.values():
        for copy in tensor.copies:
            if copy.original is not None:
                original = (base.tensors if copy.in_base else own)[copy.original]
                _check_copy(copy, own[copy.name], original)


def _check_copy(copy: Copy, saved: TensorRef, original: TensorRef) -> None:
    if copy.transposed:
        same = torch.equal(_read(saved), _read(original).T.to(_read(saved).dtype))
        if not same:
            raise _mismatch(copy, saved, original, 0)
        return
    rows, width = (*original.shape, 1)[0], max(1, math.prod(original.shape[1:]))
    step = max(1, _BLOCK_ELEMENTS // width)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        mine, theirs = read_rows(saved, first, count), read_rows(original, first, count)
        if not torch.equal(mine, theirs.to(mine.dtype)):
            raise _mismatch(copy, saved, original, first)


def _read(ref: TensorRef) -> torch.Tensor:
    return read_rows(ref, 0, ref.shape[0])


def _mismatch(
    copy: Copy, saved: TensorRef, original: TensorRef, row: int
) -> BaseMismatchError | AdapterError:
    module = copy.name.removeprefix("base_model.model.").removesuffix(".weight")
    module = module.removesuffix(".base_layer")
    if copy.in_base:
        return BaseMismatchError(
            f"the adapter carries another weight of {module!r} than the base has",
            where=str(saved.file),
            expected=f"{original.name!r} of {original.file.name}",
            found=f"other values from row {row} on",
            hint="give the base that the adapter was trained on with --base",
        )
    return AdapterError(
        f"the adapter carries {module!r} twice, with different values",
        where=str(saved.file),
        expected=f"the values of {original.name!r}",
        found=f"other values from row {row} on",
        hint="PEFT would load one over the other: save the adapter again",
    )
