"""The values of a plan, with their JSON writer and parser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from packager.errors import InputError
from packager.manifest import Target
from packager.tensorfile import tensor_bytes
from packager.untrusted import parse_json_object

SCHEMA_VERSION = 1

Rule = Literal["copy", "cast", "lora"]
"""What makes an output tensor: the base's bytes; the base's values in another dtype;
`round(W + Σ scale·B·A)`."""

Origin = Literal["adapter", "base", "written"]


@dataclass(frozen=True)
class Delta:
    """One low-rank update `scale · lora_b @ lora_a`.

    Attributes:
        adapter: Name of the adapter in the release.
        module: Dotted module name.
        lora_a: Tensor name in the adapter's file, shape (rank, in_features).
        lora_b: Tensor name in the adapter's file, shape (out_features, rank).
        rank: Inner dimension.
        scale: Factor.
        base_copy: Tensor name in the adapter's file of a copy of the base's weight, or None.
        transposed: Whether the base stores this weight as (in_features, out_features), so that
            the update is `scale · (lora_b @ lora_a)ᵀ`.
    """

    adapter: str
    module: str
    lora_a: str
    lora_b: str
    rank: int
    scale: float
    base_copy: str | None = None
    transposed: bool = False


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor.

    Attributes:
        name: In the output.
        dtype: safetensors element type of the output.
        shape: Of the output.
        rule: What makes it.
        source: Name of the base tensor that it is made from.
        deltas: Updates, in the order in which they are added.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rule: Rule
    source: str
    deltas: tuple[Delta, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return tensor_bytes(self.dtype, self.shape)


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
class TargetPlan:
    """One target of one adapter.

    Attributes:
        target: Which.
        name: Of the adapter in the release.
        path: Folder in the bundle.
        shards: Weights, in order; empty for targets that copy the adapter's file.
        files: Everything else.
        unties_head: Whether the head is written apart from the embedding.
    """

    target: Target
    name: str
    path: str
    shards: tuple[PlannedShard, ...]
    files: tuple[PlannedFile, ...]
    unties_head: bool = False

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """All output tensors, in writing order."""
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of weights and of files whose size is known."""
        return sum(shard.nbytes for shard in self.shards) + sum(
            file.size or 0 for file in self.files
        )


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


def plan_document(plan: ReleasePlan) -> dict[str, Any]:
    """Returns the plan as a JSON-ready mapping."""
    return asdict(plan)


def render_plan(plan: ReleasePlan) -> str:
    """Returns the plan as JSON text."""
    return json.dumps(plan_document(plan), ensure_ascii=False, indent=1) + "\n"


def parse_plan(text: str | bytes, *, where: str) -> ReleasePlan:
    """Parses what `render_plan` wrote.

    Raises:
        InputError: Not a plan of this schema.
    """
    raw = parse_json_object(text, where=where)
    try:
        if raw["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {raw['schema_version']!r}")
        targets = tuple(_target(item) for item in raw["targets"])
        return ReleasePlan(**{**raw, "targets": targets, "notes": tuple(raw["notes"])})
    except (KeyError, TypeError, ValueError) as problem:
        raise InputError(
            "the plan is damaged",
            where=where,
            found=str(problem)[:200],
            hint="make it again: lorapack plan --json",
        ) from problem


def _target(raw: Mapping[str, Any]) -> TargetPlan:
    shards = tuple(
        PlannedShard(item["path"], tuple(map(_tensor, item["tensors"])), item["data_start"])
        for item in raw["shards"]
    )
    files = tuple(PlannedFile(**item) for item in raw["files"])
    return TargetPlan(**{**raw, "shards": shards, "files": files})


def _tensor(raw: Mapping[str, Any]) -> PlannedTensor:
    deltas = tuple(Delta(**item) for item in raw["deltas"])
    return PlannedTensor(**{**raw, "shape": tuple(raw["shape"]), "deltas": deltas})
