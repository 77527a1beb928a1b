"""`config.json` of a merged model: the base's, with what merging changed."""

from __future__ import annotations

import json
from typing import Any

from packager.base import BaseIndex
from packager.dtype import MERGEABLE, TORCH_NAMES
from packager.plan import TargetPlan
from packager.plan.config import adapt_config
from packager.plan.fourbit import four_bit_config, merge_parts
from packager.plan.target import TaskPlan
from packager.quantisation.scheme import CONFIG_KEY


def render_model_config(base: BaseIndex, plan: TargetPlan) -> str:
    """Returns the text of `config.json`: dtype as stored, the head tied only if it still is.

    Source: transformers 5.x, configuration_utils.py: the key is `dtype`, before 5.0
    `torch_dtype`; both are read. A composite model keeps its language model in `text_config`.
    """
    config: dict[str, Any] = dict(base.config)
    config.pop(CONFIG_KEY, None)  # what was quantised has been written out
    if any(tensor.four_bit is not None for tensor in plan.tensors):
        config[CONFIG_KEY] = four_bit_config(plan.tensors)
    dtype = _main_dtype(plan)
    if dtype is not None:
        _set_dtype(config, TORCH_NAMES[dtype])
    if plan.task is not None:
        _set_task(config, plan.task)
    config = adapt_config(
        config,
        unties_head=plan.unties_head,
        vocab_rows=plan.vocab_rows,
        layers=plan.layers,
    )
    return json.dumps(config, ensure_ascii=False, indent=2) + "\n"


def _set_task(config: dict[str, Any], task: TaskPlan) -> None:
    """Names the class of the model and the classes that it tells apart.

    Source: transformers 5.x, configuration_utils.py: `num_labels` is not stored, `id2label` is.
    """
    config["architectures"] = [task.architecture]
    if task.labels:
        config["id2label"] = {str(number): name for number, name in enumerate(task.labels)}
        config["label2id"] = {name: number for number, name in enumerate(task.labels)}
        config.pop("num_labels", None)
    if task.problem_type is not None:
        config["problem_type"] = task.problem_type


def _main_dtype(plan: TargetPlan) -> str | None:
    totals: dict[str, int] = {}
    for tensor in merge_parts(plan.tensors):
        if tensor.dtype in MERGEABLE:
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype]) if totals else None


def _set_dtype(config: dict[str, Any], name: str) -> None:
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    for key in keys:
        config[key] = name
    nested = config.get("text_config")
    if isinstance(nested, dict):
        found = {key: name for key in ("dtype", "torch_dtype") if key in nested}
        config["text_config"] = {**nested, **found}
