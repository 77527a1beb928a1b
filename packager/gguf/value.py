"""A model as GGUF sees it: keys and tensors, before any weight is read. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

KeyType = Literal[
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string",
    "uint64", "int64", "float64",
]  # fmt: skip
Scalar = str | int | float | bool
KeyValue = Scalar | tuple[Scalar, ...]

Transform = Literal["none", "permute", "add_one", "transpose"]
"""How rows of a merged tensor become rows of the GGUF's:

- `none`: as they are.
- `permute`: llama.cpp's order of rotary rows. Within each of `heads` heads, a head being
  rows / heads rows seen as (2, head_rows / 2), the two axes are swapped.
- `add_one`: 1 is added to every value (norms that are stored around zero).
- `transpose`: a matrix that is stored as (in, out) (`Conv1D`).

Source: llama.cpp 0c1e57098, conversion/llama.py (permute), gemma.py, gpt2.py.
"""


@dataclass(frozen=True)
class GgufKey:
    """One metadata key.

    Attributes:
        name: Such as `llama.block_count`.
        type: Of the value; of its elements when it is an array.
        value: A scalar, or a tuple for an array.
    """

    name: str
    type: KeyType
    value: KeyValue


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: Such as `blk.0.attn_q.weight`.
        shape: Row-major, as torch has it; the file stores it reversed.
        sources: Names of tensors of the merged model. Several are stacked along a new first axis
            (experts). Empty where `values` holds the data.
        transform: What is done to each source.
        heads: For `permute`.
        values: float32 values that follow from the configuration alone (RoPE factors).
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    transform: Transform = "none"
    heads: int = 0
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class GgufModel:
    """A whole model, ready to be typed and written.

    Attributes:
        architecture: As llama.cpp names it, such as `llama`.
        keys: Every key but `general.file_type`, `general.quantization_version` and `split.*`.
        tensors: In file order.
        dropped: Tensors of the merged model that the format has no use for (rotary tables).
        layers: Number of blocks.
        experts: Experts in a block; 0 for a dense model.
        grouped_heads: Query heads for each key head; 1 without grouping.
    """

    architecture: str
    keys: tuple[GgufKey, ...]
    tensors: tuple[GgufTensor, ...]
    dropped: tuple[str, ...]
    layers: int
    experts: int = 0
    grouped_heads: int = 1


def key_value(keys: Sequence[GgufKey], name: str) -> KeyValue | None:
    """Returns the value of a key, or None."""
    return next((key.value for key in keys if key.name == name), None)
