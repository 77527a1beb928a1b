"""(adapters, base, options) → the plan of a release, or every problem at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

from packager.adapter import Feature
from packager.base import BaseIndex
from packager.combination import combination_notes
from packager.errors import (
    AdapterError,
    BaseError,
    InputError,
    LorapackError,
    RejectedPlanError,
    UnsupportedFeatureError,
)
from packager.gguf.block import PLAIN_TYPES
from packager.manifest import Target
from packager.plan.config import resized_rows
from packager.plan.fourbit import check_four_bit, quantise_planned
from packager.plan.gguf import gguf_notes, plan_ollama
from packager.plan.ggufadapter import plan_gguf_adapter
from packager.plan.layout import plan_adapter_files, plan_merged_files, plan_shards
from packager.plan.module import module_bytes
from packager.plan.option import ReleaseOptions
from packager.plan.replication import layer_map
from packager.plan.rule import count_embedding_rows, plan_tensors, unties_head
from packager.plan.serving import plan_serving, plan_vllm
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.task import check_writes, first_names, keep_tensors, plan_task
from packager.plan.value import SCHEMA_VERSION, PlannedTensor, ReleasePlan, TargetPlan, TaskPlan
from packager.quantisation.encoding import QuantisedRef
from packager.quantisation.scheme import CONFIG_KEY, check_scheme
from packager.tensorfile import tensor_bytes

EMITTED: tuple[Target, ...] = ("adapter", "merged", "ollama", "gguf-adapter", "vllm")
"""Targets that this version can write."""
_ONLY_WHEN_ASKED: tuple[Target, ...] = ("gguf-adapter", "vllm")

Planner = Callable[
    [AdapterSource, BaseSource, ReleaseOptions], tuple[TargetPlan | None, list[LorapackError]]
]

_NAME = re.compile(r"[^\W_](?:[\w.-]{0,94}[\w-])?")
_DISK_BYTES_PER_SECOND = 300e6
_HASH_BYTES_PER_SECOND = 1e9
_QUANTISED_VALUES_PER_SECOND = 20e6
_VALUES_A_SCALE = 8
_LIBRARIES_BYTES = 450 << 20
_BUFFERS_BYTES = 96 << 20


def plan_release(
    adapters: tuple[AdapterSource, ...], base: BaseSource, options: ReleaseOptions
) -> ReleasePlan:
    """Plans a release; nothing is read or written.

    Raises:
        RejectedPlanError: With every problem of every adapter and target.
    """
    problems = [*_check_names(adapters), *_check_base(base.index)]
    problems += check_four_bit(base.index) if options.hub_quant else []
    targets: list[TargetPlan] = []
    notes: list[str] = []
    for source in adapters:
        problems += _check_adapter(source, base)
        # Whether it fits is asked for every target: a loader of adapters drops what does not.
        planned, misfits = plan_tensors(source, base.index, options.dtype)
        problems += misfits
        wanted = options.targets or _default_targets(source)
        for target in (target for target in EMITTED if target in wanted):
            refused = _refused_features(source, target)
            problems += refused
            if target == "adapter":
                targets.append(_plan_adapter(source, base))
            elif target == "merged" and not refused:
                task, headless = plan_task(source, planned, base.index)
                problems += headless
                targets.append(_plan_merged(source, base, planned, task, options))
            elif not refused and not misfits:
                made, reasons = _plan_writer(target, source, base, options)
                targets += [made] if made is not None else []
                if options.targets is None:
                    notes += [_left_out(source, target, reason) for reason in reasons]
                else:
                    problems += reasons
    problems += _check_emitted(options)
    served = {target.name for target in targets if target.target == "vllm"}
    serving = None
    if served:
        sources = [source for source in adapters if source.name in served]
        serving, reasons = plan_serving(sources, base, options)
        problems += reasons
    if problems:
        raise RejectedPlanError(tuple(problems))
    plan = _summarise(tuple(targets), adapters, base, tuple(notes), options)
    baked = base.index.weights_bytes if serving is not None and serving.base.baked else 0
    return replace(plan, serving=serving, output_bytes=plan.output_bytes + baked)


def allowed_targets(features: tuple[Feature, ...]) -> tuple[Target, ...]:
    """Returns the targets that carry every feature of an adapter and need not be asked for."""
    return tuple(
        target
        for target in EMITTED
        if target not in _ONLY_WHEN_ASKED
        and all(feature.support[target].status in ("works", "normalised") for feature in features)
    )


_PLANNERS: dict[Target, Planner] = {
    "ollama": plan_ollama,
    "gguf-adapter": plan_gguf_adapter,
    "vllm": plan_vllm,
}


def _plan_writer(
    target: Target, source: AdapterSource, base: BaseSource, options: ReleaseOptions
) -> tuple[TargetPlan | None, list[LorapackError]]:
    """Plans a target of programs that write text, for models that do."""
    problem = check_writes(target, source, base.index) or _check_rows(target, source, base)
    return (None, [problem]) if problem is not None else _PLANNERS[target](source, base, options)


def _check_rows(target: Target, source: AdapterSource, base: BaseSource) -> LorapackError | None:
    """Refuses to serve an adapter beside its base where the vocabulary has other rows."""
    rows = count_embedding_rows(source, base.index)
    if target not in ("gguf-adapter", "vllm") or base.index.embedding is None:
        return None
    if rows == base.index.embedding.shape[0]:
        return None
    return UnsupportedFeatureError(
        f"target {target!r} cannot carry a vocabulary of another size than the base's",
        where=str(source.spec.directory),
        expected=f"{base.index.embedding.shape[0]} rows of the embedding",
        found=str(rows),
        hint="merge instead: --target merged, or --target ollama",
    )


def _left_out(source: AdapterSource, target: Target, reason: LorapackError) -> str:
    # Without the folder: a plan of the same model is the same wherever its files lie.
    name = reason.where.rpartition("/")[2]
    text = LorapackError(
        reason.what, where=name, expected=reason.expected, found=reason.found, hint=reason.hint
    )
    return f"{target}/{source.name} is left out: {text}"


def _default_targets(source: AdapterSource) -> tuple[Target, ...]:
    allowed = allowed_targets(source.spec.features)
    return tuple(item for item in allowed if item != "ollama" or source.gguf is not None)


def _plan_adapter(source: AdapterSource, base: BaseSource) -> TargetPlan:
    files = plan_adapter_files(source, base)
    return TargetPlan("adapter", source.name, f"adapter/{source.name}", (), files)


def _plan_merged(
    source: AdapterSource,
    base: BaseSource,
    planned: dict[str, PlannedTensor],
    task: TaskPlan,
    options: ReleaseOptions,
) -> TargetPlan:
    kept = keep_tensors(planned, task)
    stored = quantise_planned(kept.values()) if options.hub_quant else tuple(kept.values())
    shards = plan_shards(stored, base.index, options.max_shard_bytes)
    files = plan_merged_files(source, base, shards)
    return TargetPlan(
        target="merged",
        name=source.name,
        path=f"merged/{source.name}",
        shards=shards,
        files=files,
        unties_head=unties_head(kept, base.index),
        task=task,
        vocab_rows=resized_rows(kept, base.index),
        layers=layer_map(source),
    )


def _check_names(adapters: tuple[AdapterSource, ...]) -> list[LorapackError]:
    problems: list[LorapackError] = []
    names = [source.name for source in adapters]
    for name in dict.fromkeys(names):
        if not _NAME.fullmatch(name):
            problems.append(
                InputError(
                    "an adapter's name cannot be a folder and a repository name",
                    where=name[:100],
                    expected="letters, digits, '-', '_' and '.', beginning with a letter or digit",
                    hint="name it: lorapack release NAME=ADAPTER",
                )
            )
        if names.count(name) > 1:
            problems.append(
                InputError(
                    "two adapters have one name",
                    where=name,
                    hint="name them: lorapack release a=./A b=./B",
                )
            )
    return problems


def _check_base(index: BaseIndex) -> list[LorapackError]:
    problem = check_scheme(index.config, index.directory)
    if problem is not None:
        return [problem]
    if index.config.get(CONFIG_KEY) and not index.quantised_count:
        return [
            BaseError(
                "the base says that it is quantised, but none of its weights is",
                where=str(index.directory / "config.json"),
                expected="weights with their scales, or no quantization_config",
                found=f"{len(index.tensors)} plain tensors",
                hint="download the base again, or give its 16-bit original with --base",
            )
        ]
    return []


def _check_adapter(source: AdapterSource, base: BaseSource) -> list[LorapackError]:
    problems: list[LorapackError] = []
    spec = source.spec
    explained = any(item.support["merged"].status == "not possible" for item in spec.features)
    if spec.leftover and not explained:
        shown = ", ".join(repr(name) for name in spec.leftover[:3])
        problems.append(
            AdapterError(
                f"{len(spec.leftover)} tensors of the adapter are left over: no rule uses them",
                where=str(spec.directory),
                expected="names like 'base_model.model.<module>.lora_A.weight'",
                found=shown,
                hint="save the adapter again with PEFT's save_pretrained",
            )
        )
    rows = count_embedding_rows(source, base.index)
    count = source.token_count if source.token_count is not None else base.token_count
    if rows is not None and count is not None and count > rows:
        problems.append(
            AdapterError(
                "the tokenizer has more tokens than the embedding has rows",
                where=str(spec.directory),
                expected=f"at most {rows}",
                found=str(count),
                hint="the vocabulary was enlarged in training: save the embedding with the "
                "adapter (modules_to_save), or release with the tokenizer of the base",
            )
        )
    return problems


def _refused_features(source: AdapterSource, target: Target) -> list[LorapackError]:
    return [
        UnsupportedFeatureError(
            f"feature {feature.name!r} ({feature.detail}) cannot be carried by target {target!r}: "
            f"{feature.support[target].reason}",
            where=str(source.spec.directory),
            hint="keep the adapter separate: --target adapter",
        )
        for feature in source.spec.features
        if feature.support[target].status == "not possible"
    ]


def _check_emitted(options: ReleaseOptions) -> list[LorapackError]:
    return [
        UnsupportedFeatureError(
            f"this version of lorapack does not write target {target!r}",
            where="--target",
            expected=" or ".join(EMITTED),
            hint="--target merged gives a model that other tools convert",
        )
        for target in options.targets or ()
        if target not in EMITTED
    ]


def _summarise(
    targets: tuple[TargetPlan, ...],
    adapters: tuple[AdapterSource, ...],
    base: BaseSource,
    notes: tuple[str, ...],
    options: ReleaseOptions,
) -> ReleasePlan:
    merged = sum(1 for target in targets if target.target in ("merged", "ollama"))
    read = base.index.weights_bytes * merged + sum(item.spec.weights_bytes for item in adapters)
    written = sum(target.nbytes for target in targets)
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
        + max(map(module_bytes, targets), default=0)
        + _scales_bytes(base.index),
        behaviour_memory_bytes=truth,
        seconds=round(
            written / _DISK_BYTES_PER_SECOND
            + 2 * written / _HASH_BYTES_PER_SECOND
            + sum(map(_quantising_seconds, targets)),
            1,
        ),
    )


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
