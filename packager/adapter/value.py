"""An adapter as a value: which tensors do what to which parameters of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from packager.adapter.config import AdapterConfig
from packager.adapter.parameter import ParameterPair
from packager.adapter.scope import ResidualKind
from packager.adapter.support import Feature
from packager.tensorfile import TensorRef


@dataclass(frozen=True)
class LoraModule:
    """One adapted layer.

    Attributes:
        module: Dotted name in the model, such as `model.layers.0.self_attn.q_proj`.
        lora_a: Shape (rank, in_features); of an embedding, (rank, rows); of a convolution,
            (rank, in_channels, *kernel).
        lora_b: Shape (out_features, rank); of an embedding, (width, rank); of a convolution,
            (out_channels, rank, 1, …).
        rank: Rows of `lora_a`.
        alpha: From the configuration.
        scale: Factor of B·A.
        embedding: Whether the layer is an embedding, whose weight is (rows, width): (B·A)ᵀ is
            added to it.
        magnitude: Of DoRA, shape (out_features,), of an embedding (width,), of a convolution
            (1, out_channels, 1, …); or None.
        bias: Of `lora_B`, shape (out_features,), scaled as B·A is; or None.
        blocks: Blocks on the diagonals of which A and B consist; they are stored side by side, so
            that the stored width is that of one block.
        idle: What only training needed.
        diagonal: Of KaSA, between A and B, shape (rank,); or None.
        residual: What was taken out of the base's weight before training, or None.
    """

    module: str
    lora_a: TensorRef
    lora_b: TensorRef
    rank: int
    alpha: float
    scale: float
    embedding: bool = False
    magnitude: TensorRef | None = None
    bias: TensorRef | None = None
    blocks: tuple[int, int] = (1, 1)
    idle: tuple[TensorRef, ...] = ()
    diagonal: TensorRef | None = None
    residual: ResidualKind | None = None

    @property
    def tensors(self) -> tuple[TensorRef, ...]:
        """Every tensor of it."""
        optional = [ref for ref in (self.magnitude, self.bias, self.diagonal) if ref is not None]
        return (self.lora_a, self.lora_b, *optional, *self.idle)

    @property
    def is_pair(self) -> bool:
        """Whether a pair of linear layers is all that it is."""
        plain = self.blocks == (1, 1) and self.residual is None and not self.kernel
        return plain and self.tensors == (self.lora_a, self.lora_b)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution, its size in each direction; of any other layer, nothing."""
        return self.lora_a.shape[2:]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the update: that of the weight.

        (out_features, in_features); of an embedding, (rows, width); of a convolution,
        (out_channels, in_channels, *kernel).
        """
        across = self.lora_a.shape[1] * self.blocks[0]
        down = self.lora_b.shape[0]
        return (across, down) if self.embedding else (down, across, *self.kernel)


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding or a head that were trained by themselves.

    Attributes:
        module: Dotted name in the model.
        rows: Shape (tokens, width), in place of the rows of the base.
        indices: Which rows, in the order of `rows`.
    """

    module: str
    rows: TensorRef
    indices: tuple[int, ...]


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter directory, read from its configuration and header only.

    Attributes:
        directory: Where it lies.
        config: Parsed `adapter_config.json`.
        modules: Adapted layers, by name.
        tensors: Every tensor of the weights file.
        leftover: Tensors that have no place in any of these fields; a feature or an error.
        features: Everything that the adapter uses, named.
        weights_bytes: Size of the weights file.
        made_at: When the weights file was last written, UTC.
        has_tokenizer: Whether tokenizer files lie beside the weights.
        parameters: Pairs around parameters, those of a module from the outermost inwards.
        saved: Parameter → what training made of it as a whole, with repetitions of it.
        frozen: Parameter → the base's own, as it was in training, with repetitions of it.
        token_rows: Module → rows of it that were trained.
    """

    directory: Path
    config: AdapterConfig
    modules: Mapping[str, LoraModule]
    tensors: tuple[TensorRef, ...]
    leftover: tuple[str, ...]
    features: tuple[Feature, ...]
    weights_bytes: int
    made_at: datetime
    has_tokenizer: bool
    parameters: tuple[ParameterPair, ...] = ()
    saved: Mapping[str, tuple[TensorRef, ...]] = field(default_factory=dict)
    frozen: Mapping[str, tuple[TensorRef, ...]] = field(default_factory=dict)
    token_rows: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def parameter_count(self) -> int:
        """Trained parameters: the elements of every tensor but the base's own and repetitions."""
        copies = {ref.name for refs in self.frozen.values() for ref in refs}
        copies |= {ref.name for refs in self.saved.values() for ref in refs[1:]}
        return sum(math.prod(ref.shape) for ref in self.tensors if ref.name not in copies)

    @property
    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors by their names in the model, such as `score.weight`."""
        return {
            tensor.name.removeprefix("base_model.model."): tensor.shape for tensor in self.tensors
        }

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types in use, sorted."""
        return tuple(sorted({tensor.dtype for tensor in self.tensors}))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks in use, sorted."""
        own = {self.config.rank_of(name) for name in self._parameter_names}
        return tuple(sorted(own | {module.rank for module in self.modules.values()}))

    @property
    def alphas(self) -> tuple[float, ...]:
        """Alphas in use, sorted."""
        own = {self.config.alpha_of(name) for name in self._parameter_names}
        return tuple(sorted(own | {module.alpha for module in self.modules.values()}))

    @property
    def scales(self) -> tuple[float, ...]:
        """Factors of B·A in use, sorted."""
        own = {self.config.scale_of(name) for name in self._parameter_names}
        return tuple(sorted(own | {module.scale for module in self.modules.values()}))

    @property
    def targets(self) -> tuple[str, ...]:
        """Last names of the layers and parameters that are adapted, sorted."""
        names = (*self.modules, *self._parameter_names)
        return tuple(sorted({name.rpartition(".")[2] for name in names}))

    @property
    def pair_count(self) -> int:
        """Number of layers and parameters that are adapted."""
        return len(self.modules) + len(self.parameters)

    @property
    def _parameter_names(self) -> tuple[str, ...]:
        """Dotted names of adapted parameters: which of them a module holds, only a base tells."""
        modules = {pair.module: pair.depth + 1 for pair in self.parameters}
        names: list[str] = []
        for module, count in modules.items():
            found = self.config.selected_parameters(module)
            names += found if len(found) == count else [module]
        return tuple(names)
