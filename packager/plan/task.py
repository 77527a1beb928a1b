"""What a merged model is for: its class, its labels, and heads of other tasks that stay behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from packager.base import BaseIndex
from packager.errors import AdapterError, LorapackError, UnsupportedFeatureError
from packager.manifest import Target
from packager.plan.source import AdapterSource
from packager.plan.target import TaskPlan
from packager.plan.value import PlannedTensor
from packager.task import Task, class_count, find_task, head_module, label_names, task_architecture

# Source: transformers 5.23, models/*/modeling_*.py: what stands beside the backbone in the classes
# of other tasks. Where the backbone has a prefix of its own, everything else is a head.
_HEADS = (
    "lm_head", "cls", "score", "classifier", "classification_head", "qa_outputs", "embed_out",
    "final_logits_bias", "vocab_transform", "vocab_layer_norm", "vocab_projector",
)  # fmt: skip
# Source: the same: models of which several tasks share a part of the head.
_SHARED = {"modernbert": ("head",), "modernbert-decoder": ("head",)}
# Source: the same, and PEFT 0.21, peft_model.py, classifier_module_names: parts that a classifier
# needs, that no language model has, and that PEFT does not save unless it is told to.
_UNSAVED = {
    ("distilbert", "SEQ_CLS"): ("pre_classifier",),
    ("deberta", "SEQ_CLS"): ("pooler",),
    ("deberta-v2", "SEQ_CLS"): ("pooler",),
    ("xlnet", "SEQ_CLS"): ("sequence_summary",),
    ("bert", "SEQ_CLS"): ("bert.pooler",),
}
# Source: the same: classes without the layer that pools a text into a vector (`add_pooling_layer`
# false), of all families for these tasks and of some for the first.
_UNPOOLED = ("TOKEN_CLS", "QUESTION_ANS")
_UNPOOLED_CLASSIFIERS = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "longformer",
    "data2vec-text", "esm", "xmod",
)  # fmt: skip
_SHOWN = 3


def plan_task(
    source: AdapterSource, planned: Mapping[str, PlannedTensor], base: BaseIndex
) -> tuple[TaskPlan, list[LorapackError]]:
    """Plans what a merged model is for.

    Args:
        source: The adapter.
        planned: Tensors of base + adapter by name.
        base: The base.

    Returns:
        The plan, and every problem: a head that was trained but not saved cannot be released.
    """
    task = find_task(source.spec.config.task_type, base.architecture, base.config)
    architecture = task_architecture(task, base.architecture, base.config)
    changes_class = architecture != base.architecture
    dropped = tuple(_other_heads(task, planned, base)) if changes_class else ()
    plan = TaskPlan(
        name=task.name,
        architecture=architecture,
        labels=_labels(task, source, planned, base),
        problem_type=source.problem_type,
        dropped=dropped,
    )
    return plan, _check_head(task, source, planned, base) if changes_class else []


def check_writes(target: Target, source: AdapterSource, base: BaseIndex) -> LorapackError | None:
    """Returns why a program that writes text cannot run a model, or None where it can."""
    task = find_task(source.spec.config.task_type, base.architecture, base.config)
    if task.generates:
        return None
    return UnsupportedFeatureError(
        f"target {target!r} is for models that write text; this one was trained for another task",
        where=str(source.spec.directory),
        expected="task_type CAUSAL_LM",
        found=task.name,
        hint=f"--target merged gives a model that {task.auto_class} loads",
    )


def keep_tensors(planned: Mapping[str, PlannedTensor], task: TaskPlan) -> dict[str, PlannedTensor]:
    """Returns the tensors without the heads of other tasks."""
    dropped = set(task.dropped)
    return {name: tensor for name, tensor in planned.items() if name not in dropped}


def _labels(
    task: Task,
    source: AdapterSource,
    planned: Mapping[str, PlannedTensor],
    base: BaseIndex,
) -> tuple[str, ...]:
    """Names of the classes that the head has, where the base's configuration has others."""
    count = class_count(task, {name: tensor.shape for name, tensor in planned.items()})
    if count is None:
        return ()
    if len(source.labels) == count:
        return source.labels
    if len(label_names(base.config)) == count:
        return ()
    return tuple(f"LABEL_{number}" for number in range(count))


def _other_heads(
    task: Task, planned: Mapping[str, PlannedTensor], base: BaseIndex
) -> Iterator[str]:
    kind = str(base.config.get("model_type"))
    prefix, shared = _backbone_prefix(task, planned), _SHARED.get(kind, ())
    pooler = f"{prefix}.pooler." if prefix else "pooler."
    pools = task.name not in _UNPOOLED
    pools = pools and (task.name != "SEQ_CLS" or kind not in _UNPOOLED_CLASSIFIERS)
    for name, tensor in planned.items():
        first = name.partition(".")[0]
        outside = first != prefix if prefix else first in _HEADS and first not in task.heads
        unused = name.startswith(pooler) and not pools
        if (outside or unused) and first not in shared and not _is_changed(tensor):
            yield name


def _backbone_prefix(task: Task, planned: Mapping[str, PlannedTensor]) -> str | None:
    """The first part of the backbone's names in the checkpoint, or None where they have none.

    A class with a head names its backbone, one without does not: where the checkpoint has a name
    more than the class, or the same one, that is the backbone's.
    """
    for name, tensor in planned.items():
        first = name.partition(".")[0]
        for update in tensor.deltas:
            parts = update.module.split(".")
            if task.name == "FEATURE_EXTRACTION":
                if name.startswith(f"{first}.{update.module}."):
                    return first
            elif parts[0] == first and first not in task.heads and len(parts) > 1:
                return first
    return None


def _is_changed(tensor: PlannedTensor) -> bool:
    return bool(tensor.deltas) or tensor.source_adapter is not None


def _check_head(
    task: Task, source: AdapterSource, planned: Mapping[str, PlannedTensor], base: BaseIndex
) -> list[LorapackError]:
    """Refuses a class of which a part is neither in the base nor in the adapter."""
    kind = str(base.config.get("model_type"))
    needed = _UNSAVED.get((kind, task.name), ())
    missing = [part for part in needed if not _has(planned, part)]
    if task.heads and head_module(task, planned) is None:
        missing.insert(0, " or ".join(task.heads))
    if not missing:
        return []
    return [
        AdapterError(
            f"a part of the model is neither in the base nor in the adapter: {', '.join(missing)}",
            where=str(source.spec.directory),
            expected=f"the whole head of a {task.ending.removeprefix('For')} model",
            found=first_names(planned),
            hint="it was random in training and was not saved: train again with it in "
            "modules_to_save",
        )
    ]


def _has(planned: Mapping[str, PlannedTensor], part: str) -> bool:
    bare = part.rpartition(".")[2]
    return any(name.startswith((f"{part}.", f"{bare}.")) for name in planned)


def first_names(names: Iterable[str]) -> str:
    """Returns what the first parts of dotted names are, the first few of them."""
    first = list(dict.fromkeys(name.partition(".")[0] for name in names))
    more = len(first) - _SHOWN
    return ", ".join(first[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
