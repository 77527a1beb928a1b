"""Level `weights` for GGUF: tensors of a file recomputed from base + adapter, and quantised again.

The truth is made in float64, by other code than the writer's: rows are put into llama.cpp's order
by indexing. ggml quantises it once more; what the file holds must be these blocks. A near-tie, in
which the writer's float32 and the truth's float64 round to different sides, changes a block, so
most blocks have to be equal, and none may lie further from the truth than quantising explains.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from packager.digest import OnBytes
from packager.gguf.block import BLOCKS, PLAIN_TYPES, BlockType, row_bytes
from packager.gguf.ggml import load_ggml
from packager.gguf.layout import PlacedTensor
from packager.plan import GgufPlan
from packager.stream import single_threaded_torch
from packager.verify.blockdata import dequantise_rows, read_data, square_error, square_sum
from packager.verify.blockfigure import Sums, add_change, judge, judge_blind
from packager.verify.blockfile import check_headers
from packager.verify.proof import BlocksCheck
from packager.verify.truthrows import Rows, TruthSources, stream_truth
from packager.verify.weights import unit_of

Importance = Mapping[str, NDArray[np.float32]]

SAMPLE_VALUES = 48 << 20
"""How many values of a file `release` recomputes at once after writing."""

_MATRIX_KEY = "quantize.imatrix.file"
"""Source: llama.cpp 0c1e57098, include/llama.h, LLM_KV_QUANTIZE_IMATRIX_FILE."""

_WORKERS = 2
_LAYER = re.compile(r"^blk\.\d+\.")
_16BIT = {"BF16": torch.bfloat16, "F16": torch.float16}
_PLAIN: dict[str, torch.dtype] = {**_16BIT, "F32": torch.float32}


def check_blocks(
    plan: GgufPlan,
    quant: str,
    folder: Path,
    sources: TruthSources,
    *,
    importance: Importance | None = None,
    sample_values: int | None = None,
    on_bytes: OnBytes | None = None,
) -> BlocksCheck:
    """Recomputes tensors of one quantisation and accounts for all of them.

    Args:
        plan: Of the target.
        quant: Which of its quantisations.
        folder: Of the target.
        sources: Base and adapter.
        importance: Tensor name → weight of each column, as given to the writer.
        sample_values: Check about so many values, each type and kind of tensor at least once;
            None checks everything.
        on_bytes: Told of bytes checked.

    Raises:
        InputError: A source or a file cannot be read.
    """
    files = tuple(file for file in plan.files if file.quant == quant)
    problems = list(check_headers(plan, files, folder))
    placed = [(folder / file.path, item) for file in files for item in file.tensors]
    chosen = placed if sample_values is None else _choose_sample(placed, sample_values)
    made_with_matrix = any(key.name == _MATRIX_KEY for file in files for key in file.keys)
    checker = _Checker(plan, sources, importance or {}, made_with_matrix and importance is None)
    figures: list[Sums] = []

    def check(item: tuple[Path, PlacedTensor]) -> tuple[Sums, str]:
        result = checker.check(*item)
        if on_bytes is not None:
            on_bytes(item[1].tensor.nbytes)
        return result

    with single_threaded_torch(), ThreadPoolExecutor(_WORKERS) as pool:
        for sums, problem in pool.map(check, chosen if not problems else []):
            figures.append(sums)
            problems += [problem] if problem else []
    return _summarise(figures, chosen, placed, checker, tuple(problems))


class _Checker:
    """Checks single tensors; shared by threads."""

    def __init__(
        self, plan: GgufPlan, sources: TruthSources, importance: Importance, blind: bool
    ) -> None:
        self.blind = blind
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self._merged = {tensor.name: tensor for tensor in plan.merged}
        self._sources = sources
        self._importance = importance
        self._ggml = load_ggml()
        dtypes = [ref.dtype for ref in sources.base.values()]
        self.rounded_to = "BF16" if dtypes.count("BF16") >= dtypes.count("F16") else "F16"

    def check(self, path: Path, placed: PlacedTensor) -> tuple[Sums, str]:
        """Returns the figures of one tensor, and what is wrong with it, or nothing."""
        kind = placed.tensor.type
        tensor = self._tensors[placed.tensor.name]
        sums = Sums()
        nbytes = row_bytes(kind, placed.tensor.shape[-1])
        for rows in stream_truth(tensor, self._merged, self._sources):
            count = rows.truth.shape[0]
            stored = read_data(path, placed.offset + rows.first * nbytes, count * nbytes)
            if kind in PLAIN_TYPES:
                self._compare_plain(kind, stored, rows, sums)
            else:
                weights = self._weights_of(tensor.name, rows)
                self._compare_blocks(kind, stored, rows, weights, sums)
        return sums, judge_blind(placed, sums) if self.blind else judge(placed, sums)

    def _weights_of(self, name: str, rows: Rows) -> NDArray[np.float32] | None:
        weights = self._importance.get(name)
        shape = self._tensors[name].shape
        # As for the writer, weights of another size than the tensor's are none.
        if weights is None or weights.size != math.prod(shape[:-2]) * shape[-1]:
            return None
        width = rows.truth.shape[1]
        return np.ascontiguousarray(weights.reshape(-1, width)[rows.matrix], np.float32)

    def _compare_blocks(
        self,
        kind: BlockType,
        stored: NDArray[np.uint8],
        rows: Rows,
        weights: NDArray[np.float32] | None,
        sums: Sums,
    ) -> None:
        truth = rows.truth
        wanted = self._quantise(kind, truth, weights)
        size = BLOCKS[kind].nbytes
        equal = (stored.reshape(-1, size) == wanted.reshape(-1, size)).all(axis=1)
        sums.blocks += len(equal)
        sums.equal += int(equal.sum())
        width = truth.shape[1]
        found = torch.from_numpy(dequantise_rows(kind, stored, width)).double()
        add_change(rows, found, sums)
        sums.error += square_sum(found - truth)
        sums.again += square_error(kind, wanted, width, truth)
        sums.truth += square_sum(truth)
        if rows.change is not None:
            rounded = truth.to(_16BIT[self.rounded_to]).double()
            detour = self._quantise(kind, rounded, weights)
            sums.from_16bit += square_error(kind, detour, width, truth)

    def _compare_plain(
        self, kind: BlockType, stored: NDArray[np.uint8], rows: Rows, sums: Sums
    ) -> None:
        """Single values are right to half a unit in the last place, a float32's to one.

        The merge in float32 may be off by a few units of float32 where large terms cancel: `slack`.
        """
        truth = rows.truth
        found = torch.from_numpy(dequantise_rows(kind, stored, truth.shape[1])).double()
        share = 1.0 if kind == "F32" else 0.5
        allowed = share * unit_of(truth.contiguous(), kind) * (1 + 2.0**-10) + rows.slack
        bad = ~((found - truth).abs() <= allowed)
        if sums.bad_row is None and bool(bad.any()):
            sums.bad_row = rows.first + int(bad.any(dim=1).nonzero()[0])
        sums.error += square_sum(found - truth)
        sums.truth += square_sum(truth)
        if rows.change is not None:
            detour = truth.to(_16BIT[self.rounded_to]).to(_PLAIN[kind]).double()
            sums.from_16bit += square_sum(detour - truth)

    def _quantise(
        self, kind: BlockType, rows: torch.Tensor, weights: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        values = np.ascontiguousarray(rows.float().numpy())
        out = np.empty(values.shape[0] * row_bytes(kind, values.shape[1]), np.uint8)
        self._ggml.quantise_rows(kind, values, out, weights)
        return out


def _summarise(
    figures: list[Sums],
    chosen: list[tuple[Path, PlacedTensor]],
    placed: list[tuple[Path, PlacedTensor]],
    checker: _Checker,
    problems: tuple[str, ...],
) -> BlocksCheck:
    # Only changed tensors have come the 16-bit way: the others are 16-bit in the base already.
    changed = [sums for sums in figures if sums.from_16bit]
    truth = math.fsum(sums.truth for sums in changed) or 1.0
    blocks = sum(sums.blocks for sums in figures)
    equal = sum(sums.equal for sums in figures)
    done = [item.tensor.type for _, item in chosen]
    total = [item.tensor.type for _, item in placed]
    return BlocksCheck(
        checked=len(figures),
        total=len(placed),
        by_type={kind: (done.count(kind), total.count(kind)) for kind in sorted(set(total))},
        equal_blocks=None if checker.blind else equal / blocks if blocks else 1.0,
        error=math.sqrt(math.fsum(sums.error for sums in changed) / truth),
        error_from_16bit=math.sqrt(math.fsum(sums.from_16bit for sums in changed) / truth),
        rounded_to=checker.rounded_to,
        problems=problems,
    )


def _choose_sample(
    placed: list[tuple[Path, PlacedTensor]], values: int
) -> list[tuple[Path, PlacedTensor]]:
    """Chooses the first tensor of each type and kind, then evenly up to a budget."""
    total = sum(_count(item) for _, item in placed)
    first: dict[tuple[str, str], str] = {}
    for _, item in placed:
        kind = _LAYER.sub("", item.tensor.name)
        first.setdefault((item.tensor.type, kind), item.tensor.name)
    chosen = set(first.values())
    budget = values - sum(_count(item) for _, item in placed if item.tensor.name in chosen)
    for _, item in placed[:: max(1, math.ceil(total / values))]:
        if item.tensor.name not in chosen and _count(item) <= budget:
            chosen.add(item.tensor.name)
            budget -= _count(item)
    return [(path, item) for path, item in placed if item.tensor.name in chosen]


def _count(placed: PlacedTensor) -> int:
    return math.prod(placed.tensor.shape)
