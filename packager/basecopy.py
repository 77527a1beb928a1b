"""Weights of the base that PEFT saved with an adapter: they have to be the base's own."""

from __future__ import annotations

import torch

from packager.adapter import LoraModule
from packager.base import BaseIndex
from packager.errors import BaseMismatchError
from packager.plan import AdapterSource
from packager.plan.rule import find_base_weight
from packager.rowreader import read_rows
from packager.tensorfile import TensorRef

_BLOCK_ELEMENTS = 1 << 20


def check_base_copies(source: AdapterSource, base: BaseIndex) -> None:
    """Compares every copy with the base, after the rounding to the dtype of training.

    PEFT loads such a copy over the base's weight, so that one which differs is part of what was
    trained, or was saved from another base.

    Raises:
        BaseMismatchError: A copy differs from the base.
        InputError: A file cannot be read.
    """
    for module in source.spec.modules.values():
        ref = find_base_weight(module, base)
        if module.base_copy is not None and ref is not None:
            _check_copy(module, module.base_copy, ref)


def _check_copy(module: LoraModule, copy: TensorRef, ref: TensorRef) -> None:
    rows, width = ref.shape
    step = max(1, _BLOCK_ELEMENTS // max(1, width))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        saved, stored = read_rows(copy, first, count), read_rows(ref, first, count)
        if not torch.equal(saved, stored.to(saved.dtype)):
            raise BaseMismatchError(
                f"the adapter carries another weight of {module.module!r} than the base has",
                where=str(copy.file),
                expected=f"{ref.name!r} of {ref.file.name}",
                found=f"other values from row {first} on",
                hint="give the base that the adapter was trained on with --base",
            )
