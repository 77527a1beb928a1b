"""The values of a server that answers as a base and as each of its adapters.

What no adapter of a server can be is served as a whole: the merged model is what another server
loads, a neighbour of the first one, which alone is talked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from packager.serving.shape import ModelShape

ServedType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Chat:
    """How a model of a release is talked to, read from its tokenizer's files.

    Attributes:
        template: Chat template, or None.
        tokenizer: `sha256:<hex>` over what decides which token ids a text becomes, or None
            without a tokenizer; equal digests make equal ids.
        end_ids: Token ids that end an answer.
        specials: Name that templates know → text of a special token, such as `eos_token`.
    """

    template: str | None
    tokenizer: str | None
    end_ids: tuple[int, ...]
    specials: Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """Where the base of a release can be had.

    Attributes:
        repo: `org/name` on the Hub, or None for a folder.
        commit: 40 hexadecimal digits, or None likewise.
        digest: `sha256:<hex>` over its files.
        gated: Whether the Hub asks for an agreement before download.
    """

    repo: str | None
    commit: str | None
    digest: str
    gated: bool


@dataclass(frozen=True)
class ServedMerge:
    """That what a server loads is a merged model.

    Attributes:
        adapter: Name of the adapter that was merged; the model answers under it.
        digest: `sha256:<hex>` over the files of the adapter as it was trained.
        folder: Of the model in the bundle.
        reason: Why the adapter itself is not served.
    """

    adapter: str
    digest: str
    folder: str
    reason: str = ""


@dataclass(frozen=True)
class ServedBase:
    """The model that the server loads: the base, or a merged model as a whole.

    Attributes:
        name: Under which it answers.
        origin: Where it can be had; of a merged model, where its base can.
        license: Licence id.
        architecture: As in its `config.json`.
        nbytes: Of its weights.
        dtype: That the server computes in.
        quantization: How its weights are stored, as its configuration names it, which the server
            reads there; None for plain ones.
        context: Most tokens of a prompt with its answer, or None for what the model says.
        shape: Its sizes, or None where its configuration does not tell.
        baked: Whether its files are part of the bundle.
        chat: Whether it has a chat template.
        merged: Which merged model it is, or None for the base.
    """

    name: str
    origin: Origin
    license: str
    architecture: str
    nbytes: int
    dtype: ServedType
    quantization: str | None
    context: int | None
    shape: ModelShape | None
    baked: bool
    chat: bool
    merged: ServedMerge | None = None

    @property
    def from_hub(self) -> bool:
        """Whether the server fetches it itself, at its commit."""
        known = self.origin.repo is not None and self.origin.commit is not None
        return known and not self.baked and self.merged is None


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter that the server answers as.

    Attributes:
        name: Under which it answers; its folder below `adapters/`.
        rank: Of its normalised form.
        nbytes: Of the weights of that form.
        digest: `sha256:<hex>` over the files of the adapter as it was trained.
        template: Its own chat template, or None for the server's.
        stop_ids: Token ids that end its answers, beside those that end the base's.
    """

    name: str
    rank: int
    nbytes: int
    digest: str
    template: str | None = None
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ServedFactor:
    """One half of an update, as the server loads it.

    Attributes:
        name: In the file.
        dtype: safetensors element type.
        shape: Rows and columns; a rank below the file's is filled up with zeros.
        source: Tensor name in the adapter's file.
        scale: Factor of every value.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    scale: float


@dataclass(frozen=True)
class ServedLora:
    """An adapter in the form in which PEFT, vLLM and llama.cpp compute the same.

    Attributes:
        rank: Of every update.
        folded: Whether the scale is part of the weights; else it is as trained.
        factors: In the order of their data.
        size: Of the weights file in bytes.
    """

    rank: int
    folded: bool
    factors: tuple[ServedFactor, ...]
    size: int


@dataclass(frozen=True)
class ServingPlan:
    """One server, and those beside it.

    Attributes:
        vllm_version: That the plan was checked against.
        base: What it loads.
        adapters: What it answers as besides.
        max_lora_rank: Smallest that vLLM takes and that holds every rank.
        max_loras: Adapters that one step of the engine may mix.
        max_cpu_loras: Adapters kept in memory.
        gpu_memory_bytes: Of one GPU, where it was told.
        gpu_share: Part of a GPU's memory that it takes where it has neighbours, or is one, so
            that one GPU holds all; None leaves it to the engine.
        service: Name that others find it by in containers and clusters; empty says that nobody
            looks for it.
        neighbours: Servers of one merged model each, which the first one passes requests on to.
    """

    vllm_version: str
    base: ServedBase
    adapters: tuple[ServedAdapter, ...]
    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    gpu_memory_bytes: int | None
    gpu_share: float | None = None
    service: str = ""
    neighbours: tuple[ServingPlan, ...] = ()

    @property
    def trusts_templates(self) -> bool:
        """Whether requests carry chat templates, which the gate alone may put there."""
        return any(adapter.template is not None for adapter in self.adapters)

    @property
    def names(self) -> tuple[str, ...]:
        """All that it answers as, its neighbours' models last."""
        own = (self.base.name, *(adapter.name for adapter in self.adapters))
        return (*own, *(name for server in self.neighbours for name in server.names))

    def server_of(self, name: str) -> ServingPlan:
        """Returns which of the servers answers under a name; the first one under any other."""
        return next((server for server in self.neighbours if name in server.names), self)
