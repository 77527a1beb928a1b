"""What a planned release reads, writes and takes, and what its user should know."""

from __future__ import annotations

import math

from packager.base import BaseIndex
from packager.combination import combination_notes
from packager.gguf.block import PLAIN_TYPES
from packager.plan.expert import expert_bytes
from packager.plan.gguf import gguf_notes
from packager.plan.module import module_bytes
from packager.plan.option import ReleaseOptions
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.target import SCHEMA_VERSION, ReleasePlan, TargetPlan
from packager.plan.task import first_names
from packager.quantisation.encoding import QuantisedRef
from packager.serving.value import ServingPlan
from packager.tensorfile import tensor_bytes

_DISK_BYTES_PER_SECOND = 300e6
_HASH_BYTES_PER_SECOND = 1e9
_QUANTISED_VALUES_PER_SECOND = 20e6
_VALUES_A_SCALE = 8
_LIBRARIES_BYTES = 450 << 20
_BUFFERS_BYTES = 96 << 20


def summarise(
    targets: tuple[TargetPlan, ...],
    adapters: tuple[AdapterSource, ...],
    base: BaseSource,
    notes: tuple[str, ...],
    options: ReleaseOptions,
    serving: ServingPlan | None,
) -> ReleasePlan:
    """Returns the plan of a release with its figures.

    Args:
        targets: In writing order.
        adapters: What they are made from.
        base: Likewise.
        notes: What came to light while they were planned.
        options: Of the release.
        serving: The first of their servers, or None.
    """
    merged = sum(1 for target in targets if target.target in ("merged", "ollama"))
    read = base.index.weights_bytes * merged + sum(item.spec.weights_bytes for item in adapters)
    written = sum(target.nbytes for target in targets) + _baked_bytes(serving)
    factors = [
        tensor_bytes("F64", module.lora_a.shape) + tensor_bytes("F64", module.lora_b.shape)
        for source in adapters
        for module in source.spec.modules.values()
    ]
    truth = base.index.parameter_count * 4 + (1 << 30)
    return ReleasePlan(
        schema_version=SCHEMA_VERSION,
        base=base.title,
        evidence=base.evidence,
        license=base.license,
        targets=targets,
        notes=(*notes, *_notes(targets, base), *combination_notes(options.combination)),
        output_bytes=written,
        read_bytes=read,
        peak_memory_bytes=_LIBRARIES_BYTES
        + _BUFFERS_BYTES
        + max(factors, default=0)
        + max(map(expert_bytes, adapters), default=0)
        + max(map(module_bytes, targets), default=0)
        + _scales_bytes(base.index),
        behaviour_memory_bytes=truth,
        seconds=round(
            written / _DISK_BYTES_PER_SECOND
            + 2 * written / _HASH_BYTES_PER_SECOND
            + sum(map(_quantising_seconds, targets)),
            1,
        ),
        serving=serving,
    )


def _baked_bytes(serving: ServingPlan | None) -> int:
    """Of the models that stand in the servers' folders."""
    if serving is None:
        return 0
    return sum(item.base.nbytes for item in (serving, *serving.neighbours) if item.base.baked)


def _scales_bytes(index: BaseIndex) -> int:
    """Of the scales of the largest quantised tensor, of which a few are kept at a time."""
    sizes = (ref.nbytes for ref in index.tensors.values() if isinstance(ref, QuantisedRef))
    return max(sizes, default=0) // _VALUES_A_SCALE


def _quantising_seconds(target: TargetPlan) -> float:
    """Of two threads; each type of a tensor is made once, whatever number of files it is for."""
    if target.gguf is None:
        return 0
    made = {
        (item.tensor.name, item.tensor.type): math.prod(item.tensor.shape)
        for file in target.gguf.files
        for item in file.tensors
        if item.tensor.type not in PLAIN_TYPES
    }
    return sum(made.values()) / _QUANTISED_VALUES_PER_SECOND


def _notes(targets: tuple[TargetPlan, ...], base: BaseSource) -> tuple[str, ...]:
    notes = []
    if base.evidence == "name-and-shape":
        notes.append(
            "the adapter has no base lock: that this is the base it was trained on is known by "
            "name and shape only"
        )
    notes += [
        f"{target.path}: the head is written apart from the embedding (tie_word_embeddings false)"
        for target in targets
        if target.unties_head
    ]
    notes += [
        f"{target.path}: {len(target.task.dropped)} tensors of another task's head stay behind: "
        f"{first_names(target.task.dropped)}"
        for target in targets
        if target.task is not None and target.task.dropped
    ]
    return (*notes, *(note for target in targets for note in gguf_notes(target)))
