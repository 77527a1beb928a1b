"""Tensors of an adapter that reach no output, looked at for a training that diverged."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace

from packager.dtype import ITEM_BYTES
from packager.factorreader import check_finite_values
from packager.rowreader import OpenFiles, read_rows
from packager.stream.chunk import CHUNK_BYTES
from packager.tensorfile import TensorRef


def check_finite(tensors: Iterable[TensorRef]) -> None:
    """Reads tensors, a chunk at a time, and refuses those that diverged in training.

    Raises:
        AdapterError: One holds NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    with ExitStack() as stack:
        files = OpenFiles(stack)
        for ref in tensors:
            unit = ITEM_BYTES[ref.dtype]
            step = CHUNK_BYTES // unit
            for first in range(0, ref.nbytes // unit, step):
                shape = (min(step, ref.nbytes // unit - first),)
                part = replace(ref, offset=ref.offset + first * unit, shape=shape)
                check_finite_values(ref, read_rows(part, 0, shape[0], files))
