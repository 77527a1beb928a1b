"""Which type each tensor of a quantised file gets: the same choice that llama-quantize makes.

A quantisation is a mixture. Its name gives the type of most matrices; the head, the values of
attention and the way down from the feed-forward layer get more bits, by their place in the model.

Source for all rules: llama.cpp 0c1e57098, src/llama-quant.cpp, llama_tensor_get_type_impl,
tensor_allows_quantization and tensor_type_fallback.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from packager.errors import InputError
from packager.gguf.block import BLOCKS, PLAIN_TYPES, BlockType, data_bytes, inner_shape
from packager.gguf.value import GgufModel, GgufTensor

Quant = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K",
    "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "IQ4_NL", "IQ4_XS",
]  # fmt: skip
QUANTS: tuple[Quant, ...] = get_args(Quant)

FILE_TYPES: dict[Quant, int] = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip
"""`general.file_type`. Source: llama.cpp 0c1e57098, include/llama.h, enum llama_ftype."""

_ALIASES: dict[str, Quant] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

Category = Literal["head", "embedding", "qkv", "values", "keys", "out", "down", "other"]

_CATEGORIES: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "qkv"),
    ("attn_kv_b.weight", "values"),
    ("attn_v.weight", "values"),
    ("attn_k.weight", "keys"),
    ("attn_output.weight", "out"),
    ("ffn_up", "other"),
    ("ffn_gate", "other"),
    ("ffn_down", "down"),
)
"""Part of a name → category; the first that fits."""

_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel"
    r"|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight"
    r"|time_mix_(?:first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|attn_rel_b\.weight|\.position_embd|\.rel_pos|\.patch_embd|\.patch_merger"
    r"|sam\.(?:pos_embd|neck\.|net_)|a\.rvq\.codebook|mm\.a\.code_embd"
)
"""Small or sensitive matrices that no quantisation touches."""
_KEPT_WHOLE = frozenset({"position_embd.weight", "token_types.weight"})

_FALLBACKS: dict[BlockType, BlockType] = {
    "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""Types in blocks of 256 → what rows of another length get."""

_LAYERS_OF_70B = {"llama": 80, "deci": 80, "qwen2": 80, "olmo": 80, "jais2": 68}
"""Source: llama.cpp 0c1e57098, src/models/*.cpp, LLM_TYPE_70B."""


@dataclass(frozen=True)
class TypedTensor:
    """One tensor of a quantised file.

    Attributes:
        name: In the file.
        shape: Row-major.
        type: What its values are stored as.
        nbytes: Of its data, without padding.
        fell_back: The type that its rows were too short or too uneven for, or empty.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    nbytes: int
    fell_back: BlockType | Literal[""] = ""


def parse_quant(text: str) -> Quant:
    """Returns the quantisation that a user named, in any case; `Q4_K` is `Q4_K_M`.

    Raises:
        InputError: There is no such quantisation.
    """
    name = text.strip().upper()
    if name in _ALIASES:
        return _ALIASES[name]
    for quant in QUANTS:
        if quant == name:
            return quant
    raise InputError(
        "unknown quantisation",
        where="--quant",
        expected=", ".join(QUANTS),
        found=repr(text)[:40],
        hint="a good start is --quant Q4_K_M --quant Q8_0",
    )


def choose_types(
    model: GgufModel, quant: Quant, *, has_imatrix: bool = False
) -> tuple[TypedTensor, ...]:
    """Chooses the type of every tensor.

    Args:
        model: The model.
        quant: The quantisation.
        has_imatrix: Whether an importance matrix is given.

    Returns:
        The tensors in the order in which llama-quantize writes them.
    """
    mixture = _Mixture(model, quant, has_imatrix)
    return tuple(mixture.type_tensor(tensor) for tensor in file_order(model.tensors))


def file_order(tensors: Iterable[GgufTensor]) -> list[GgufTensor]:
    """Sorts tensors by block, those outside of blocks first, then by name.

    Source: llama.cpp 0c1e57098, src/llama-model-loader.h, weight_name_comparer.
    """
    return sorted(tensors, key=lambda tensor: (_layer(tensor.name), tensor.name.encode()))


def is_quantised(tensor: GgufTensor) -> bool:
    """Tells whether a quantisation touches a tensor at all."""
    return (
        len(inner_shape(tensor.shape)) >= 2
        and tensor.name.endswith("weight")
        and tensor.name not in _KEPT_WHOLE
        and _KEPT.search(tensor.name) is None
    )


class _Mixture:
    """The choice for one file; it depends on how many tensors of a kind came before."""

    def __init__(self, model: GgufModel, quant: Quant, has_imatrix: bool) -> None:
        self._quant = quant
        self._default = _default_type(quant)
        self._has_imatrix = has_imatrix
        self._experts = model.experts
        self._layers = model.layers
        self._falcon = model.architecture == "falcon"
        self._grouped = model.grouped_heads >= 4
        self._is_70b = _LAYERS_OF_70B.get(model.architecture) == model.layers and not (
            model.architecture == "llama" and model.grouped_heads == 1
        )
        names = [tensor.name for tensor in model.tensors]
        self._tied = "output.weight" not in names
        self._values = sum(_category(name) in {"qkv", "values"} for name in names)
        self._seen: Counter[Category] = Counter()

    def type_tensor(self, tensor: GgufTensor) -> TypedTensor:
        wanted: BlockType = "F32"
        if is_quantised(tensor):
            wanted = self._default
            if wanted not in PLAIN_TYPES:
                wanted = self._choose(tensor)
        chosen = _fitting(wanted, tensor.shape[-1])
        return TypedTensor(
            name=tensor.name,
            shape=tensor.shape,
            type=chosen,
            nbytes=data_bytes(chosen, tensor.shape),
            fell_back=wanted if chosen != wanted else "",
        )

    def _choose(self, tensor: GgufTensor) -> BlockType:
        category = _category(tensor.name)
        if category == "head" or (category == "embedding" and self._tied):
            return self._head(tensor.shape[-1])
        if category in {"values", "qkv"}:
            self._seen["values"] += 1
            return self._attention_values(self._seen["values"] - 1)
        if category == "keys" and self._experts == 8:
            return "Q8_0"
        if category == "down":
            self._seen["down"] += 1
            place = self._seen["down"] - 1 if self._experts <= 1 else _layer(tensor.name)
            return self._feed_forward_down(place)
        return self._attention_output() if category == "out" else self._default

    def _head(self, width: int) -> BlockType:
        uneven = width % BLOCKS[self._default].values != 0
        return "Q8_0" if self._default == "Q8_0" or self._falcon or uneven else "Q6_K"

    def _attention_values(self, place: int) -> BlockType:
        chosen = self._default
        match self._quant:
            case "Q2_K":
                chosen = "Q4_K" if self._grouped else "Q3_K"
            case "Q3_K_M":
                chosen = "Q5_K" if place < 2 else "Q4_K"
            case "Q3_K_L":
                chosen = "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if self._grouped:
                chosen = "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if _has_more_bits(place, self._values):
                chosen = "Q6_K"
            case "Q4_K_S" if place < 4:
                chosen = "Q5_K"
        if self._is_70b and chosen in {"Q3_K", "Q4_K"}:
            chosen = "Q5_K"
        return "Q8_0" if self._experts == 8 else chosen

    def _feed_forward_down(self, place: int) -> BlockType:
        chosen, count = self._default, self._layers
        more, first = _has_more_bits(place, count), place < count // 8
        match self._quant:
            case "Q2_K":
                chosen = "Q3_K"
            case "Q3_K_M" if place < count // 16:
                chosen = "Q5_K"
            case "Q3_K_M" if more or not self._falcon:
                chosen = "Q4_K"
            case "Q3_K_L":
                chosen = "Q4_K" if self._falcon else "Q5_K"
            case "Q4_K_M" if self._falcon:
                chosen = "Q6_K" if place < count // 16 else "Q5_K" if more else "Q4_K"
            case "Q4_K_M" | "Q5_K_M" if more:
                chosen = "Q6_K"
            case "IQ4_NL" | "IQ4_XS" if first and not self._has_imatrix:
                chosen = "Q5_K"
            case "Q4_K_S" if first and not self._falcon:
                chosen = "Q5_K"
            case "Q4_0" | "Q5_0" if first and self._has_imatrix:
                chosen = "Q4_1" if self._quant == "Q4_0" else "Q5_1"
        return chosen

    def _attention_output(self) -> BlockType:
        if self._falcon:
            return "Q4_K" if self._quant == "Q3_K_L" else self._default
        if self._experts == 8:
            raised = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"}
            return "Q5_K" if self._quant in raised else self._default
        others: dict[Quant, BlockType] = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
        return others.get(self._quant, self._default)


def _default_type(quant: Quant) -> BlockType:
    name = quant.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    return next(known for known in BLOCKS if known in {quant, name})


def _category(name: str) -> Category:
    if name == "output.weight":
        return "head"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "embedding"
    return next((category for part, category in _CATEGORIES if part in name), "other")


def _has_more_bits(place: int, count: int) -> bool:
    """Tells whether a block is among the first and last eighths or every third between them."""
    eighth = count // 8
    # C's remainder has the sign of the dividend, but a place before the first eighth is already in.
    return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2


def _fitting(wanted: BlockType, width: int) -> BlockType:
    """Returns a type whose blocks fill a row."""
    if width % BLOCKS[wanted].values == 0:
        return wanted
    other = _FALLBACKS.get(wanted, wanted)
    return other if width % BLOCKS[other].values == 0 else "F16"


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d{1,9})", name)
    return int(match[1]) if match else -1
