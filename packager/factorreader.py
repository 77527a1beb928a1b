"""An adapter's tensors as arithmetic, where they are all that an update needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from packager.digest import identify_file
from packager.errors import AdapterError
from packager.merge import Factors, PartFactors, Replacement, RowUpdate, StackFactors, cut_pair
from packager.plan import Delta, Magnitude, PartDelta, RowReplacement
from packager.plan.expert import STACKS_KEPT
from packager.rowreader import OpenFiles, read_rows, read_whole
from packager.tensorfile import TensorRef

_READING = Lock()
"""Threads that need the same factor wait for the one that reads it."""


def check_finite_values(ref: TensorRef, values: Tensor) -> None:
    """Refuses values of an adapter that diverged in training.

    Raises:
        AdapterError: One is NaN or infinity.
    """
    # There is no isfinite for eight bits; their values all exist in float32.
    known = values.float() if values.element_size() == 1 else values
    # NaN spreads to both ends; unlike isfinite(), this makes no second copy.
    if known.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(known))).all()):
        raise AdapterError(
            f"the adapter tensor {ref.name!r} holds NaN or infinity",
            where=str(ref.file),
            hint="the training diverged: use an earlier checkpoint",
        )


def read_finite(ref: TensorRef, files: OpenFiles) -> Tensor:
    """Reads a whole tensor of an adapter and refuses it where its training diverged.

    Raises:
        AdapterError: A value is NaN or infinity.
        InputError: The file cannot be read.
    """
    values = read_whole(ref, files)
    check_finite_values(ref, values)
    return values


def read_factors(
    delta: Delta, refs: Mapping[str, TensorRef], dtype: torch.dtype, files: OpenFiles
) -> Factors:
    """Reads A and B; where the base is stored the other way round, (B·A)ᵀ is Aᵀ·Bᵀ.

    Those of a convolution are matrices, too, since the kernel of B is a single point.

    Source: PEFT 0.21, tuners/lora/layer.py, _ConvNd.get_delta_weight.
    """
    blocks_a, blocks_b = delta.blocks
    lora_a = _spread(read_finite(refs[delta.lora_a], files).flatten(1).to(dtype), blocks_a)
    lora_b = _spread(read_finite(refs[delta.lora_b], files).flatten(1).to(dtype), blocks_b)
    if delta.diagonal is not None:
        lora_b = lora_b * read_finite(refs[delta.diagonal], files).to(dtype)
    factors = Factors(lora_a, lora_b, delta.scale)
    return factors.transposed() if delta.transposed else factors


def _spread(factor: Tensor, blocks: int) -> Tensor:
    """Puts blocks that are stored below each other on a diagonal.

    Source: PEFT 0.21, tuners/lora/variants.py, BlockDiagonalLinear.weight_as_blockdiagonal_matrix.
    """
    if blocks == 1:
        return factor
    spread: Tensor = torch.block_diag(*factor.chunk(blocks))  # type: ignore[no-untyped-call]
    return spread


def read_token_rows(
    update: RowReplacement, ref: TensorRef, dtype: torch.dtype, files: OpenFiles
) -> Replacement:
    """Reads trained rows, in the order of the rows that they replace."""
    order = sorted(range(len(update.indices)), key=update.indices.__getitem__)
    values = read_finite(ref, files).to(dtype)[torch.tensor(order, dtype=torch.long)]
    return Replacement(values, tuple(update.indices[place] for place in order))


def read_part(
    delta: PartDelta,
    refs: Mapping[str, TensorRef],
    dtype: torch.dtype,
    files: OpenFiles | None,
) -> RowUpdate:
    """Makes a part of a pair of factors ready to be added.

    Args:
        delta: Which part.
        refs: The adapter's tensors by name.
        dtype: Of the arithmetic.
        files: Files that stay open as long as the update is used, or None.

    Returns:
        An update that reads the factors of the experts of a stack when it comes to them.

    Raises:
        AdapterError: A factor holds NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    reader = _PairReader(delta, refs[delta.lora_a], refs[delta.lora_b], dtype, files)
    if delta.experts > 1 and delta.expert is None:
        return StackFactors(reader.read, delta.outputs)
    return PartFactors(reader.read(delta.expert or 0), delta.first_row)


@dataclass(frozen=True)
class _PairReader:
    delta: PartDelta
    lora_a: TensorRef
    lora_b: TensorRef
    dtype: torch.dtype
    files: OpenFiles | None

    def read(self, expert: int) -> Factors:
        """Reads the factors of one expert, of those outputs that are used."""
        delta, rank = self.delta, self.delta.rank
        lora_a = read_rows(self.lora_a, expert * rank, rank, self.files)
        check_finite_values(self.lora_a, lora_a)
        lora_b = _read_experts(self.lora_b, delta.experts)[expert]
        outputs = slice(delta.first_output, delta.first_output + delta.outputs)
        left, right = cut_pair(lora_a, lora_b, transposed=delta.transposed, outputs=outputs)
        return Factors(left.to(self.dtype), right.to(self.dtype), delta.scale)


def _read_experts(ref: TensorRef, experts: int) -> Tensor:
    """Reads the B of all experts, whose columns lie between each other's, one after the other.

    Experts that are stored one by one come to this each for itself: what was read last is kept.

    Returns:
        Shape (experts, out_features, rank), as stored.

    Raises:
        AdapterError: A value is NaN or infinity.
        InputError: The adapter's file cannot be read.
    """
    with _READING:
        return _read_experts_once(ref, experts, identify_file(ref.file))


@lru_cache(maxsize=STACKS_KEPT)
def _read_experts_once(ref: TensorRef, experts: int, _identity: str) -> Tensor:
    values = read_whole(ref)
    check_finite_values(ref, values)
    return values.view(values.shape[0], -1, experts).permute(2, 0, 1).contiguous()


def read_magnitude(update: Magnitude, refs: Mapping[str, TensorRef], files: OpenFiles) -> Tensor:
    """Reads the trained norms of DoRA, shape (norms,), float64."""
    return read_finite(refs[update.magnitude], files).flatten().double()
