"""The values of a whole plan: what a release holds, target by target."""

from __future__ import annotations

from dataclasses import dataclass

from packager.manifest import Target
from packager.plan.value import (
    ConverterPlan,
    GgufLoraPlan,
    GgufPlan,
    PlannedFile,
    PlannedShard,
    PlannedTensor,
)
from packager.serving.value import ServedLora, ServedMerge, ServingPlan
from packager.task import TaskName

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TaskPlan:
    """What a merged model is for.

    Attributes:
        name: Of the task.
        architecture: Class of transformers, for `config.json`.
        labels: Names of its classes, or empty where `config.json` of the base tells.
        problem_type: `single_label_classification` and the like, where it is known.
        dropped: Tensors of the base that belong to a head of another task.
    """

    name: TaskName
    architecture: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class TargetPlan:
    """One target of one adapter.

    Attributes:
        target: Which.
        name: Of the adapter in the release.
        path: Folder in the bundle.
        shards: Weights in safetensors, in order; empty for targets without.
        files: Everything but weights.
        unties_head: Whether the head is written apart from the embedding.
        task: What a merged model is for, or None for other targets.
        gguf: Weights in GGUF, or None.
        gguf_lora: The adapter in GGUF, or None.
        converter: How another program takes part; `gguf` is known once it has.
        served: The adapter as a server loads it, or None.
        whole: Its merged model as a server loads it in place of the adapter, or None.
        vocab_rows: Rows of the embedding, where they are not the base's.
        layers: The base's layer of each layer, where they are not the base's.
    """

    target: Target
    name: str
    path: str
    shards: tuple[PlannedShard, ...]
    files: tuple[PlannedFile, ...]
    unties_head: bool = False
    task: TaskPlan | None = None
    gguf: GgufPlan | None = None
    gguf_lora: GgufLoraPlan | None = None
    converter: ConverterPlan | None = None
    served: ServedLora | None = None
    whole: ServedMerge | None = None
    vocab_rows: int | None = None
    layers: tuple[int, ...] = ()

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All output tensors in safetensors, in writing order."""
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of weights and of files whose size is known."""
        weights = sum(shard.nbytes for shard in self.shards)
        if self.gguf is not None:
            weights += self.gguf.nbytes
        if self.gguf_lora is not None:
            weights += self.gguf_lora.size
        if self.served is not None:
            weights += self.served.size
        return weights + sum(file.size or 0 for file in self.files)


@dataclass(frozen=True)
class ReleasePlan:
    """A whole release, before anything is read or written.

    Attributes:
        schema_version: Of this document.
        base: What the base is called.
        evidence: How the base is known.
        license: Of the release.
        targets: In writing order.
        notes: What a user should know, one line each.
        output_bytes: Of the bundle, as far as known beforehand.
        read_bytes: Of base and adapters.
        peak_memory_bytes: Estimate for writing; the proof of behaviour comes on top.
        behaviour_memory_bytes: Estimate for the proof of behaviour.
        seconds: Estimate for a disk of 300 MB/s.
        serving: The first of the servers that the targets `vllm` are of, or None.
    """

    schema_version: int
    base: str
    evidence: str
    license: str
    targets: tuple[TargetPlan, ...]
    notes: tuple[str, ...]
    output_bytes: int
    read_bytes: int
    peak_memory_bytes: int
    behaviour_memory_bytes: int
    seconds: float
    serving: ServingPlan | None = None
