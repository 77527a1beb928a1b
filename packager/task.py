"""What a model is for: PEFT's task type and the base's class → the class of the merged model.

An adapter for a classifier is trained on a base that may be a language model: the classes of
transformers share the backbone and differ in the head. The merged model is of the class that was
trained, so its name, its labels and its head are the task's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

TaskName = Literal[
    "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION",
    "IMAGE_TEXT", "UNKNOWN",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a task means for loading and using a model.

    Attributes:
        name: PEFT's name, or ours where PEFT has none.
        auto_class: Class of transformers.
        pipeline_tag: Of the Hub, or None where it knows none.
        ending: Of the names of its classes in transformers.
        generates: Whether the model writes text.
        heads: Modules of which one gives the answer, where the backbone gives none.
        reads_pictures: Whether it is given pictures besides text.
        optional: Modules that the answer does not depend on; a base may lack them.
    """

    name: TaskName
    auto_class: str
    pipeline_tag: str | None
    ending: str
    generates: bool = False
    heads: tuple[str, ...] = ()
    reads_pictures: bool = False
    optional: tuple[str, ...] = ()


# Source: PEFT 0.21, src/peft/utils/peft_types.py, TaskType; transformers 5.23, auto classes;
# huggingface.js, packages/tasks/src/pipelines.ts (the Hub dropped text2text-generation).
TASKS: dict[str, Task] = {
    "CAUSAL_LM": Task("CAUSAL_LM", "AutoModelForCausalLM", "text-generation", "ForCausalLM", True),
    "SEQ_2_SEQ_LM": Task(
        "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", None, "ForConditionalGeneration", True
    ),
    "SEQ_CLS": Task(
        "SEQ_CLS",
        "AutoModelForSequenceClassification",
        "text-classification",
        "ForSequenceClassification",
        heads=("score", "classifier", "classification_head"),
    ),
    "TOKEN_CLS": Task(
        "TOKEN_CLS",
        "AutoModelForTokenClassification",
        "token-classification",
        "ForTokenClassification",
        heads=("classifier", "score"),
    ),
    "QUESTION_ANS": Task(
        "QUESTION_ANS",
        "AutoModelForQuestionAnswering",
        "question-answering",
        "ForQuestionAnswering",
        heads=("qa_outputs",),
    ),
    "FEATURE_EXTRACTION": Task(
        "FEATURE_EXTRACTION", "AutoModel", "feature-extraction", "Model", optional=("pooler",)
    ),
    "IMAGE_TEXT": Task(
        "IMAGE_TEXT",
        "AutoModelForImageTextToText",
        "image-text-to-text",
        "ForConditionalGeneration",
        True,
        reads_pictures=True,
    ),
}
COMPARED = tuple(TASKS)
"""Names of the tasks whose behaviour can be compared."""
UNKNOWN = Task("UNKNOWN", "AutoModelForCausalLM", None, "", True)

_MOST_LABELS = 1 << 16
_PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Source: transformers 5.23, models/auto/modeling_auto.py: how the names of language models end.
_LANGUAGE_ENDINGS = (
    "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ModelWithLMHead", "MTModel",
)  # fmt: skip
_ENDINGS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
    "ForMultipleChoice", "ForNextSentencePrediction", "ForMaskedLM", "ForPreTraining",
    "ForCausalLM", "ForConditionalGeneration", "WithLMHeadModel", "ModelWithLMHead",
    "DoubleHeadsModel", "LMHeadModel", "MTModel", "TextModel", "Model",
)  # fmt: skip
_TASK_OF_ENDING = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
# Source: the same file: the text half of a family that also sees has classes of its own.
_TEXT_HALF = "_text"
_TEXT_CLASSIFIERS = ("gemma3_text", "qwen3_5_text")


def is_backbone(architecture: str) -> bool:
    """Tells whether a class is a base model by itself, without the head of any task."""
    heads = (*_LANGUAGE_ENDINGS, "DoubleHeadsModel")
    return architecture.endswith("Model") and not architecture.endswith(heads)


def find_task(
    task_type: str | None, architecture: str, config: Mapping[str, Any] | None = None
) -> Task:
    """Returns what a model is for.

    Args:
        task_type: PEFT's, or None; the base's class tells then.
        architecture: Of the base, as in `config.json`.
        config: The base's configuration; one with a vision tower reads pictures.
    """
    writes = architecture.endswith(_LANGUAGE_ENDINGS)
    if task_type in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM") and writes and _sees(config):
        return TASKS["IMAGE_TEXT"]
    if task_type in TASKS:
        return TASKS[task_type]
    for ending, name in _TASK_OF_ENDING.items():
        if architecture.endswith(ending):
            return TASKS[name]
    if architecture.endswith("ForConditionalGeneration"):
        return TASKS["SEQ_2_SEQ_LM"]
    return TASKS["CAUSAL_LM"] if writes else UNKNOWN


def task_architecture(task: Task, architecture: str, config: Mapping[str, Any]) -> str:
    """Returns the class that a model of this task is of, as `config.json` names it.

    Args:
        task: What the model is for.
        architecture: Class that the base was saved from.
        config: The base's configuration.
    """
    writes = architecture.endswith(_LANGUAGE_ENDINGS)
    if task.name == "UNKNOWN" or (task.generates and writes):
        return architecture
    if architecture.endswith(task.ending) and not writes:
        return architecture
    stem = next(
        (architecture.removesuffix(end) for end in _ENDINGS if architecture.endswith(end)), ""
    )
    return f"{stem}{_half(task, config)}{task.ending}" if stem else architecture


def _half(task: Task, config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type", ""))
    if task.name == "FEATURE_EXTRACTION" and kind.endswith(_TEXT_HALF):
        return "Text"
    return "Text" if task.name == "SEQ_CLS" and kind in _TEXT_CLASSIFIERS else ""


def head_module(task: Task, tensors: Iterable[str]) -> str | None:
    """Returns the module of the task's head among tensors, by its first name, or None."""
    first = {name.partition(".")[0] for name in tensors}
    return next((head for head in task.heads if head in first), None)


def class_count(task: Task, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Returns the rows of the last matrix of a task's head, or None without one.

    Args:
        task: Which.
        shapes: Of tensors, by name.
    """
    head = head_module(task, shapes)
    if task.name == "QUESTION_ANS":
        return None
    for name in (f"{head}.weight", f"{head}.out_proj.weight"):
        if len(shapes.get(name, ())) == 2:
            return shapes[name][0]
    return None


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of classes that a configuration gives, in order, or nothing.

    Source: transformers 5.x, configuration_utils.py: `id2label`, whose keys JSON makes text.
    """
    raw = config.get("id2label")
    if not isinstance(raw, dict) or len(raw) > _MOST_LABELS:
        return ()
    names = [raw.get(str(number)) for number in range(len(raw))]
    known = tuple(name for name in names if isinstance(name, str))
    return known if len(known) == len(names) else ()


def problem_type(config: Mapping[str, Any]) -> str | None:
    """Returns what kind of classes a configuration says that they are, or None.

    Source: transformers 5.x, configuration_utils.py, `problem_type`.
    """
    value = config.get("problem_type")
    return value if value in _PROBLEM_TYPES else None


def _sees(config: Mapping[str, Any] | None) -> bool:
    return config is not None and isinstance(config.get("vision_config"), dict)
