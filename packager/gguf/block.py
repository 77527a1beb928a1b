"""The element types of GGUF files: their numbers and the sizes of their blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

BlockType = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """How values of a type lie in memory.

    Attributes:
        number: Of the type in GGUF files and in ggml.
        values: In one block.
        nbytes: Of one block.
    """

    number: int
    values: int
    nbytes: int


BLOCKS: dict[BlockType, Block] = {
    "F32": Block(0, 1, 4),
    "F16": Block(1, 1, 2),
    "BF16": Block(30, 1, 2),
    "Q4_0": Block(2, 32, 18),
    "Q4_1": Block(3, 32, 20),
    "Q5_0": Block(6, 32, 22),
    "Q5_1": Block(7, 32, 24),
    "Q8_0": Block(8, 32, 34),
    "Q2_K": Block(10, 256, 84),
    "Q3_K": Block(11, 256, 110),
    "Q4_K": Block(12, 256, 144),
    "Q5_K": Block(13, 256, 176),
    "Q6_K": Block(14, 256, 210),
    "IQ4_NL": Block(20, 32, 18),
    "IQ4_XS": Block(23, 256, 136),
}
"""Source: llama.cpp 0c1e57098, ggml/include/ggml.h (numbers), ggml/src/ggml-common.h (blocks)."""

PLAIN_TYPES: frozenset[BlockType] = frozenset({"F32", "F16", "BF16"})
"""Types that hold each value by itself."""


def row_bytes(type_name: BlockType, width: int) -> int:
    """Returns the bytes of a row of `width` values, a multiple of the block's."""
    block = BLOCKS[type_name]
    return width // block.values * block.nbytes


def data_bytes(type_name: BlockType, shape: tuple[int, ...]) -> int:
    """Returns the bytes of a tensor of a row-major shape."""
    return math.prod(shape[:-1]) * row_bytes(type_name, shape[-1]) if shape else 0


def inner_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a shape without its leading ones, which ggml does not count as dimensions."""
    first = next((place for place, size in enumerate(shape) if size != 1), len(shape) - 1)
    return shape[max(first, 0) :]
