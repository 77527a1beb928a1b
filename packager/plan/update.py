"""The updates that a plan knows, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Axis = Literal["row", "column"]
"""Of a matrix as it is stored."""


@dataclass(frozen=True)
class Delta:
    """One low-rank update `scale · lora_b @ lora_a`.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        lora_a: Tensor name in the adapter's file, shape (rank, in_features); of a convolution,
            (rank, in_channels, *kernel).
        lora_b: Tensor name in the adapter's file, shape (out_features, rank); of a convolution,
            (out_channels, rank, 1, …).
        rank: Inner dimension.
        scale: Factor.
        transposed: Whether the base stores this weight as (in_features, out_features), so that
            the update is `scale · (lora_b @ lora_a)ᵀ`.
        blocks: Blocks on the diagonals of which `lora_a` and `lora_b` consist, stored below each
            other.
        idle: Tensor names in the adapter's file of what only training needed.
        diagonal: Tensor name in the adapter's file of a diagonal between the two, shape (rank,),
            or None.
        convolution: Whether the layer is one, so that a row of its weight, (out_channels,
            in_channels, *kernel), is all that belongs to one output.
        kind: Of update.
    """

    adapter: str
    module: str
    lora_a: str
    lora_b: str
    rank: int
    scale: float
    transposed: bool = False
    blocks: tuple[int, ...] = (1, 1)
    idle: tuple[str, ...] = ()
    diagonal: str | None = None
    convolution: bool = False
    kind: Literal["lora"] = "lora"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses."""
        diagonal = () if self.diagonal is None else (self.diagonal,)
        return (self.lora_a, self.lora_b, *diagonal, *self.idle)


@dataclass(frozen=True)
class Magnitude:
    """DoRA: what the updates before it made gets trained norms, `m · V / ‖V‖`.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        magnitude: Tensor name in the adapter's file, one value for each norm.
        axis: What has a norm of its own: each row of the stored matrix, or each column.
        kind: Of update.
    """

    adapter: str
    module: str
    magnitude: str
    axis: Axis = "row"
    kind: Literal["dora"] = "dora"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses."""
        return (self.magnitude,)


@dataclass(frozen=True)
class Residual:
    """What an initialisation took out of the base before training: a part of low rank.

    PEFT works it out again from the base whenever it loads such an adapter.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        rank: Of the part.
        scale: Factor of B·A of the module.
        kind: What was taken out: the projection onto the first columns, the largest singular
            values, or the smallest.
    """

    adapter: str
    module: str
    rank: int
    scale: float
    kind: Literal["olora", "pissa", "kasa"]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses: none."""
        return ()


@dataclass(frozen=True)
class Rounding:
    """LoftQ: the weight as bitsandbytes' quantisation left it before training.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        loaded_in: Into what it was rounded.
        kind: Of update.
    """

    adapter: str
    module: str
    loaded_in: Literal["nf4", "int8"]
    kind: Literal["loftq"] = "loftq"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses: none."""
        return ()


@dataclass(frozen=True)
class RowReplacement:
    """Rows of the adapter in the place of what the updates before it made.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        rows: Tensor name in the adapter's file, shape (tokens, width).
        indices: Which rows they replace, in their order; each once.
        kind: Of update.
    """

    adapter: str
    module: str
    rows: str
    indices: tuple[int, ...]
    kind: Literal["tokens"] = "tokens"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses."""
        return (self.rows,)


@dataclass(frozen=True)
class Addition:
    """A vector added to a vector, `b + scale · v`.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        values: Tensor name in the adapter's file, shape (out_features,).
        scale: Factor.
        kind: Of update.
    """

    adapter: str
    module: str
    values: str
    scale: float
    kind: Literal["bias"] = "bias"

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses."""
        return (self.values,)


@dataclass(frozen=True)
class Copy:
    """A tensor of an adapter that repeats another one, and is only compared with it.

    Attributes:
        adapter: Name of the adapter in the release.
        name: In the adapter's file.
        original: Name of what it has to equal; None where nothing reads it in the model either.
        in_base: Whether that is in the base, and not in the adapter's file.
        transposed: Whether it is its transpose.
    """

    adapter: str
    name: str
    original: str | None
    in_base: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class PartDelta:
    """A low-rank update of a parameter that the checkpoint stores in other cuts than the model.

    The pair of factors is that of `experts` matrices. Expert e has rows `e·rank` and following of
    `lora_a` and every `experts`-th column of `lora_b` from column e on.

    Source: PEFT 0.21, tuners/lora/layer.py, ParamWrapper.get_delta_weight.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted name of the parameter.
        lora_a: Tensor name in the adapter's file, shape (experts·rank, in_features).
        lora_b: Tensor name in the adapter's file, shape (out_features, experts·rank).
        rank: Inner dimension of one expert.
        scale: Factor.
        experts: Number of matrices that the pair is for; 1 for that of one layer.
        expert: Which of them the stored tensor holds, or None for all, one below the other.
        transposed: Whether the update of a matrix is `scale · (lora_b @ lora_a)ᵀ`.
        first_output: Row of a matrix's update that is the first of those used.
        outputs: Number of rows used.
        first_row: Row of the stored tensor that the first of them is added to.
        share: Which of the updates that the pair is cut into this is.
        shares: How many there are.
        kind: Of update.
    """

    adapter: str
    module: str
    lora_a: str
    lora_b: str
    rank: int
    scale: float
    experts: int
    expert: int | None
    transposed: bool
    first_output: int
    outputs: int
    first_row: int
    share: int
    shares: int
    kind: Literal["expert-lora", "part-lora"]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the adapter's tensors that it uses, which the first share stands for."""
        return (self.lora_a, self.lora_b) if self.share == 0 else ()


@dataclass(frozen=True)
class Companion:
    """Another parameter of a module that is merged as a whole.

    Attributes:
        parameter: Its name within the module, such as `bias`.
        source: Name of the stored tensor.
        source_adapter: Name of the adapter that holds it, or None for the base.
        updates: Those before.
    """

    parameter: str
    source: str
    source_adapter: str | None = None
    updates: tuple[Update, ...] = ()


@dataclass(frozen=True)
class ModuleUpdate:
    """What a layer of PEFT's makes of one parameter of its module, which is merged as a whole.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name, as in the adapter.
        parameter: Which of the module's, such as `weight`.
        tuner: Of PEFT, lower case, such as `loha`.
        reads: Names of the adapter's tensors that the merge of the module needs.
        tensors: Those of them that are counted here, so that each is counted once.
        companions: The other parameters of the module.
        kind: Of update.
    """

    adapter: str
    module: str
    parameter: str
    tuner: str
    reads: tuple[str, ...]
    tensors: tuple[str, ...]
    companions: tuple[Companion, ...] = ()
    kind: Literal["module"] = "module"


Update = (
    Delta | Residual | Rounding | Magnitude | RowReplacement | Addition | PartDelta | ModuleUpdate
)


def check_shares(updates: Iterable[Update]) -> list[str]:
    """Names the pairs of factors whose shares are not all there, each once."""
    found: dict[tuple[str, str], list[int]] = {}
    wanted: dict[tuple[str, str], int] = {}
    for update in updates:
        if isinstance(update, PartDelta):
            found.setdefault((update.adapter, update.lora_a), []).append(update.share)
            wanted[update.adapter, update.lora_a] = update.shares
    return [
        f"adapter tensor {name} is used in {len(shares)} of {wanted[adapter, name]} parts"
        for (adapter, name), shares in found.items()
        if sorted(shares) != list(range(wanted[adapter, name]))
    ]


def rule_of(updates: Iterable[Update], *, saved: bool = False) -> str:
    """Returns the name of the rule of a tensor, such as `lora`, or `saved+lora`.

    Args:
        updates: Of the tensor.
        saved: Whether it starts from a tensor of the adapter.
    """
    kinds = list(dict.fromkeys(map(_name_of, updates)))
    if "dora" in kinds:  # which names its low-rank update as well
        kinds = [kind for kind in kinds if kind != "lora"]
    return "+".join(["saved", *kinds] if saved else kinds)


def _name_of(update: Update) -> str:
    return update.tuner if isinstance(update, ModuleUpdate) else update.kind
