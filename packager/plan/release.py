"""(adapters, base, options) → the plan of a release, or every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from packager.adapter import Feature
from packager.errors import LorapackError, RejectedPlanError, UnsupportedFeatureError
from packager.manifest import Target
from packager.plan.config import resized_rows
from packager.plan.estimate import summarise
from packager.plan.fourbit import check_four_bit, quantise_planned
from packager.plan.gguf import plan_ollama
from packager.plan.ggufadapter import plan_gguf_adapter
from packager.plan.layout import plan_adapter_files, plan_merged_files, plan_shards
from packager.plan.option import ReleaseOptions
from packager.plan.replication import layer_map
from packager.plan.rule import count_embedding_rows, plan_tensors, unties_head
from packager.plan.serving import plan_servers, plan_vllm
from packager.plan.soundness import check_index, check_names, check_source
from packager.plan.source import AdapterSource, BaseSource
from packager.plan.target import ReleasePlan, TargetPlan, TaskPlan
from packager.plan.task import check_writes, keep_tensors, plan_task
from packager.plan.value import PlannedTensor
from packager.serving.path import merged_folder

EMITTED: tuple[Target, ...] = ("adapter", "merged", "ollama", "gguf-adapter", "vllm")
"""Targets that this version can write."""
_ONLY_WHEN_ASKED: tuple[Target, ...] = ("gguf-adapter",)

Planner = Callable[
    [AdapterSource, BaseSource, ReleaseOptions], tuple[TargetPlan | None, list[LorapackError]]
]


@dataclass
class _Found:
    """What planning has come to so far."""

    targets: list[TargetPlan] = field(default_factory=list)
    problems: list[LorapackError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def merged_of(self, source: AdapterSource) -> TargetPlan | None:
        """The merged model of an adapter, where it is planned."""
        return next(
            (item for item in self.targets if (item.target, item.name) == ("merged", source.name)),
            None,
        )


def plan_release(
    adapters: tuple[AdapterSource, ...], base: BaseSource, options: ReleaseOptions
) -> ReleasePlan:
    """Plans a release; nothing is read or written.

    Raises:
        RejectedPlanError: With every problem of every adapter and target.
    """
    found = _Found(problems=[*check_names(adapters), *check_index(base.index)])
    found.problems += check_four_bit(base.index) if options.hub_quant else []
    for source in adapters:
        _plan_source(source, base, options, found)
    targets, serving, reasons = plan_servers(found.targets, adapters, base, options)
    if options.targets is None:
        found.notes += [_left_out("vllm", reason) for reason in reasons]
    else:
        found.problems += reasons
    if found.problems:
        # What is wrong with the base is said of every adapter.
        raise RejectedPlanError(tuple({str(item): item for item in found.problems}.values()))
    return summarise(targets, adapters, base, tuple(found.notes), options, serving)


def allowed_targets(features: tuple[Feature, ...]) -> tuple[Target, ...]:
    """Returns the targets that carry every feature of an adapter and need not be asked for.

    What vLLM does not serve beside the base it serves merged, where there is a merged model.
    """
    allowed: list[Target] = []
    for target in EMITTED:
        statuses = {feature.support[target].status for feature in features}
        merged = {"merge-only"} if target == "vllm" and "merged" in allowed else set()
        if target not in _ONLY_WHEN_ASKED and statuses <= {"works", "normalised", *merged}:
            allowed.append(target)
    return tuple(allowed)


def _plan_source(
    source: AdapterSource, base: BaseSource, options: ReleaseOptions, found: _Found
) -> None:
    """Plans the targets of one adapter."""
    found.problems += check_source(source, base)
    # Whether it fits is asked for every target: a loader of adapters drops what does not.
    planned, misfits = plan_tensors(source, base.index, options.dtype)
    found.problems += misfits
    wanted = options.targets or _default_targets(source)
    for target in (target for target in EMITTED if target in wanted):
        refused = _refused_features(source, target)
        found.problems += refused
        if target == "adapter":
            found.targets.append(_plan_adapter(source, base))
        elif target == "merged" and not refused:
            task, headless = plan_task(source, planned, base.index)
            found.problems += headless
            found.targets.append(_plan_merged(source, base, planned, task, options))
        elif not refused and not misfits:
            _plan_writer(target, source, base, options, found)


_PLANNERS: dict[Target, Planner] = {"ollama": plan_ollama, "gguf-adapter": plan_gguf_adapter}


def _plan_writer(
    target: Target, source: AdapterSource, base: BaseSource, options: ReleaseOptions, found: _Found
) -> None:
    """Plans a target of programs that write text, for models that do."""
    problem = check_writes(target, source, base.index) or _check_rows(target, source, base)
    made, reasons = None, [problem] if problem is not None else []
    if problem is None and target == "vllm":
        made, reasons = plan_vllm(source, base, found.merged_of(source))
    elif problem is None:
        made, reasons = _PLANNERS[target](source, base, options)
    if made is not None:
        found.targets.append(made)
        if made.whole is not None:
            found.notes.append(f"vllm/{source.name} is served merged: {made.whole.reason}")
    elif options.targets is None:
        found.notes += [_left_out(f"{target}/{source.name}", reason) for reason in reasons]
    else:
        found.problems += reasons


def _check_rows(target: Target, source: AdapterSource, base: BaseSource) -> LorapackError | None:
    """Refuses to write an adapter for beside its base where the vocabulary has other rows."""
    rows = count_embedding_rows(source, base.index)
    if target != "gguf-adapter" or base.index.embedding is None:
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


def _left_out(what: str, reason: LorapackError) -> str:
    # Without the folder: a plan of the same model is the same wherever its files lie.
    name = reason.where.rpartition("/")[2]
    text = LorapackError(
        reason.what, where=name, expected=reason.expected, found=reason.found, hint=reason.hint
    )
    return f"{what} is left out: {text}"


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
        path=merged_folder(source.name),
        shards=shards,
        files=files,
        unties_head=unties_head(kept, base.index),
        task=task,
        vocab_rows=resized_rows(kept, base.index),
        layers=layer_map(source),
    )


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
