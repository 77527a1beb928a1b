"""The values of a plan: tensors and files; `target` puts them together.

A tensor of a merged model is made of rows: it starts from a stored tensor, of the base or of an
adapter, and updates change its rows, one after the other, in an arithmetic that is rounded once at
the end. `PlannedTensor` names both, and no more is needed to make it:

    rows = read_rows(source)                      rowreader   dequantises where the source is so
    for update in deltas: update.apply(rows)      merge       the formulas, each in one place
    round(rows)                                   stream | transform | verify

An update is three things that bear one kind: a value here, in `update`, of names and numbers; a
`RowUpdate` in `merge.update`, of tensors, which changes any block of whole rows in place, bounds
its own error, and knows its transpose; and a branch in `updatereader.read_updates` that makes the
one from the other. What depends on a whole tensor (norms of columns, a module of PEFT's) is worked
out there, once for each tensor, from blocks of rows as the updates before left them. The merged
files (`stream`), GGUF (`transform`) and the proof (`verify.weights` and `verify.truthrows`, which
compute in float64) only apply what `read_updates` gives them: a new kind has nothing to add there.

Rows are those of a matrix: a vector is one row, and dimensions before the last are counted as
rows, so that an expert of a stack is a range of rows; of a convolution, a row is an output.
`PlannedTensor.adapter_tensors` is the ledger: over all tensors, it names every tensor of every
adapter once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packager.gguf.block import BlockType
from packager.gguf.layout import GgufFile
from packager.gguf.mixture import Quant
from packager.gguf.value import GgufKey, GgufTensor, KeyType
from packager.plan.update import Copy, Delta, Update
from packager.tensorfile import tensor_bytes

Rule = str
"""What makes an output tensor, as people are shown it: `copy`, the base's bytes; `cast`, the base's
values in another dtype; `dequantise`, what its quantised values stand for; `saved`, a tensor that
the adapter holds in its place; else the kinds of its updates, such as `lora`
(`round(W + Σ scale·B·A)`) or `dora`."""

Origin = Literal["adapter", "base", "written"]


@dataclass(frozen=True)
class FourBitPart:
    """What a tensor holds of a weight that is stored in bitsandbytes' four bits.

    Attributes:
        part: The packed values, the scales, what the values stand for, or a description.
        dtype: Of the weight before, as safetensors names it.
        shape: Of the weight.
    """

    part: Literal["weight", "absmax", "quant_map", "quant_state"]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor.

    Attributes:
        name: In the output.
        dtype: safetensors element type of the output.
        shape: Of the output.
        rule: What makes it.
        source: Name of the stored tensor that its rows start from.
        deltas: Updates, in the order in which they are applied.
        source_adapter: Name of the adapter that holds the source, or None for the base.
        copies: Tensors of adapters that repeat what it is made from.
        shared: Tensors of its adapter that another tensor is made from too and that are counted
            there: an embedding and a head that were one tensor share some.
        four_bit: What it holds of a quantised weight, or None for a tensor that is stored as it
            is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rule: Rule
    source: str
    deltas: tuple[Update, ...] = ()
    source_adapter: str | None = None
    copies: tuple[Copy, ...] = ()
    shared: tuple[str, ...] = ()
    four_bit: FourBitPart | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return tensor_bytes(self.dtype, self.shape)

    @property
    def by_output(self) -> bool:
        """Whether a row is all of an index of the first dimension, as of a convolution's output."""
        return any(isinstance(update, Delta) and update.convolution for update in self.deltas)

    @property
    def adapter_tensors(self) -> tuple[tuple[str, str], ...]:
        """(adapter, name) of the tensors of adapters that it accounts for."""
        if self.four_bit is not None and self.four_bit.part != "weight":
            return ()
        used = [(update.adapter, name) for update in self.deltas for name in update.tensors]
        used += [(copy.adapter, copy.name) for copy in self.copies]
        if self.source_adapter is not None:
            used.insert(0, (self.source_adapter, self.source))
        return tuple(item for item in used if item[1] not in self.shared)


@dataclass(frozen=True)
class PlannedShard:
    """One weights file.

    Attributes:
        path: Relative to the target's folder.
        tensors: In the order of their data.
        data_start: Start of data in the base's file that it follows, for block sharing.
    """

    path: str
    tensors: tuple[PlannedTensor, ...]
    data_start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, header apart."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class PlannedFile:
    """One file besides the weights.

    Attributes:
        path: Relative to the target's folder.
        origin: Whose bytes it holds; `written` is made by this release.
        size: In bytes, where it is known beforehand.
    """

    path: str
    origin: Origin
    size: int | None


@dataclass(frozen=True)
class LongKey:
    """A metadata key whose array is too long to be shown.

    Attributes:
        name: Such as `tokenizer.ggml.tokens`.
        type: Of an element.
        count: Elements.
        sha256: Of the elements as JSON; 64 hexadecimal digits.
    """

    name: str
    type: KeyType
    count: int
    sha256: str


@dataclass(frozen=True)
class GgufPlan:
    """A model in GGUF, in one file or several, in one quantisation or several.

    Attributes:
        architecture: As llama.cpp names it.
        keys: Metadata that all files share, in order, long arrays apart.
        long_keys: The long arrays.
        tensors: What each tensor of the files is made from.
        dropped: Tensors of the merged model that the format has no use for.
        files: Every file with the type, size and place of each of its tensors.
        merged: The tensors of the merged model in float32; they are never written as such.
    """

    architecture: str
    keys: tuple[GgufKey, ...]
    long_keys: tuple[LongKey, ...]
    tensors: tuple[GgufTensor, ...]
    dropped: tuple[str, ...]
    files: tuple[GgufFile, ...]
    merged: tuple[PlannedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class ConverterPlan:
    """A merged model that the user's own llama.cpp converts; its GGUF is quantised as any other.

    Attributes:
        quants: Quantisations wanted.
        max_bytes: Most bytes of tensors in a file, or None for a single file.
        shards: The merged model in float32, which the converter is given and which is then removed.
        files: Beside the weights.
        reason: Why another converter is needed.
    """

    quants: tuple[Quant, ...]
    max_bytes: int | None
    shards: tuple[PlannedShard, ...]
    files: tuple[PlannedFile, ...]
    reason: str

    @property
    def nbytes(self) -> int:
        """Bytes of the merged model in float32."""
        return sum(shard.nbytes for shard in self.shards)


@dataclass(frozen=True)
class LoraFactor:
    """One half of an update in a GGUF LoRA.

    Attributes:
        name: In the file.
        shape: Row-major, as in the adapter.
        source: Tensor name in the adapter's file.
        scale: Factor of every value.
        heads: Number of heads whose rows get llama.cpp's rotary order; 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    source: str
    scale: float = 1.0
    heads: int = 0


@dataclass(frozen=True)
class GgufLoraPlan:
    """An adapter kept separate, in GGUF.

    Attributes:
        path: Relative to the target's folder.
        architecture: As llama.cpp names it.
        type: Of all values.
        keys: Metadata.
        factors: In the order of their data.
        data_start: First byte of the data.
        size: Of the file in bytes.
    """

    path: str
    architecture: str
    type: BlockType
    keys: tuple[GgufKey, ...]
    factors: tuple[LoraFactor, ...]
    data_start: int
    size: int
