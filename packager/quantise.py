"""Base + adapter → GGUF files in one pass: one read and one merge feed every quantisation.

Workers read, merge and quantise the next blocks while the caller hashes and writes the last one.
Values are rounded once, from merged float32 to the blocks of each type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packager.ahead import run_ahead
from packager.errors import AdapterError
from packager.gguf.block import BlockType, row_bytes
from packager.gguf.ggml import Ggml, load_ggml
from packager.gguf.layout import GgufFile
from packager.gguf.mixture import file_order
from packager.gguf.value import GgufModel
from packager.manifest import FileEntry
from packager.plan import PlannedTensor
from packager.progress import Progress
from packager.sinks.gguf import GgufSink
from packager.stream import single_threaded_torch
from packager.tensorfile import TensorRef
from packager.transform import RowBlock, plan_blocks
from packager.updatereader import AdapterTensors

Importance = Mapping[str, NDArray[np.float32]]
"""Tensor name → weight of each column, of each matrix in turn."""


@dataclass(frozen=True)
class WeightSources:
    """Where merged values come from.

    Attributes:
        planned: Merged tensors by name, with their updates.
        base: Base tensors by name.
        adapters: Adapter tensors.
    """

    planned: Mapping[str, PlannedTensor]
    base: Mapping[str, TensorRef]
    adapters: AdapterTensors


def write_gguf(
    folder: Path,
    model: GgufModel,
    files: tuple[GgufFile, ...],
    sources: WeightSources,
    *,
    threads: int,
    progress: Progress,
    importance: Importance | None = None,
) -> tuple[FileEntry, ...]:
    """Writes every file of a model.

    Args:
        folder: Where to; it exists.
        model: Keys and tensors.
        files: Planned files of all quantisations.
        sources: The merged weights.
        threads: That quantise, at least 1.
        progress: Told of bytes written, of all files together.
        importance: Weights of columns, or None.

    Returns:
        What was written, relative to `folder`, in the order of `files`.

    Raises:
        AdapterError: NaN or infinity in the adapter or the result.
        InputError: A source file cannot be read.
        OutputError: The disk is full or fails.
    """
    sink = GgufSink(folder, model, files)
    try:
        progress.advance(sum(file.data_start for file in files))
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="quantise"))
            stack.enter_context(single_threaded_torch())
            for parts in _quantised(pool, threads, model, files, sources, importance or {}):
                progress.advance(sink.add(parts))
        return sink.finish()
    except BaseException:
        sink.abort()
        raise


def _quantised(
    pool: ThreadPoolExecutor,
    threads: int,
    model: GgufModel,
    files: tuple[GgufFile, ...],
    sources: WeightSources,
    importance: Importance,
) -> Iterator[dict[BlockType, memoryview]]:
    ggml = load_ggml()
    types = _wanted_types(files)
    blocks = plan_blocks(file_order(model.tensors), sources.planned, sources.base, sources.adapters)
    jobs = (
        partial(_make, ggml, block, types[block.tensor.name], importance.get(block.tensor.name))
        for block in blocks
    )
    yield from run_ahead(pool, jobs, threads + 2)


def _wanted_types(files: tuple[GgufFile, ...]) -> dict[str, tuple[BlockType, ...]]:
    """Returns the distinct types of each tensor over all quantisations."""
    wanted: dict[str, dict[BlockType, None]] = {}
    for file in files:
        for item in file.tensors:
            wanted.setdefault(item.tensor.name, {})[item.tensor.type] = None
    return {name: tuple(types) for name, types in wanted.items()}


def _make(
    ggml: Ggml,
    block: RowBlock,
    types: tuple[BlockType, ...],
    importance: NDArray[np.float32] | None,
) -> dict[BlockType, memoryview]:
    rows = np.ascontiguousarray(block.make().numpy())
    weights = None
    if importance is not None:
        weights = importance[block.matrix * block.width : (block.matrix + 1) * block.width]
    parts: dict[BlockType, memoryview] = {}
    for type_name in types:
        if type_name == "F32":
            parts[type_name] = rows.data.cast("B")
            continue
        out = np.empty(block.count * row_bytes(type_name, block.width), dtype=np.uint8)
        if not ggml.quantise_rows(type_name, rows, out, weights):
            raise AdapterError(
                f"values of tensor {block.tensor.name!r} are too large for {type_name}",
                where=str(block.ref.file) if block.ref else block.tensor.name,
                expected="at most about 65,504, the largest number that a scale can hold",
                found=f"{float(np.abs(rows).max()):.4g}",
                hint="choose --quant BF16 or F32, or an earlier checkpoint of the adapter",
            )
        parts[type_name] = out.data
    return parts
