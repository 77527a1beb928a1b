"""What an initialisation takes out of a weight, worked out again from the weight, in float64.

Sources: PEFT 0.21, tuners/lora/layer.py, olora_init and pissa_init; variants.py,
KasaLinearVariant._truncate_base_weight. They compute in float32; each part is well conditioned,
though the vectors that span it need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from packager.merge.update import Factors

Blocks = Callable[[], Iterable[tuple[int, Tensor]]]
"""Makes a pass over a matrix: (first row, rows in float64) of each block."""


def project_columns(blocks: Blocks, rank: int, scale: float) -> Factors:
    """Returns `-scale · Q·Qᵀ·W`, where Q spans the first `rank` columns of W; in two passes."""
    columns = torch.cat([block[:, :rank].clone() for _, block in blocks()])
    basis = torch.linalg.qr(columns).Q
    rows: Tensor | None = None
    for first, block in blocks():
        part = basis[first : first + block.shape[0]].T @ block
        rows = part if rows is None else rows.add_(part)
    assert rows is not None
    return Factors(rows, basis, -scale)


def cut_singular(weight: Tensor, rank: int, *, largest: bool) -> Factors:
    """Returns minus the part of W of its `rank` largest or smallest singular values."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    chosen = slice(None, rank) if largest else slice(-rank, None)
    return Factors(right[chosen].contiguous(), left[:, chosen] * values[chosen], -1.0)
