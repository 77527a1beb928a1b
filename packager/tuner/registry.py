"""What the installed PEFT knows of a tuner."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from packager.errors import UnsupportedFeatureError
from packager.untrusted import read_json_object

CONFIG_NAME = "adapter_config.json"
_NOT_OF_MODULES = {"modules_to_save": None, "trainable_token_indices": None, "bias": "none"}
"""Fields for tensors that take the place of the base's, which is no matter of the tuner: what they
are when there are none."""


def read_config(adapter: Path) -> Any:
    """Returns an adapter's configuration as PEFT's own value, for one module of a model.

    Raises:
        UnsupportedFeatureError: This PEFT does not know the tuner or one of the fields, or the
            tuner changes no module's weights.
    """
    path = adapter / CONFIG_NAME
    raw = read_json_object(path)
    name = str(raw.get("peft_type", "")).upper()
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(name)
    if kind is None or PEFT_TYPE_TO_TUNER_MAPPING.get(name) is None:
        raise _refused(path, f"PEFT {peft.__version__} does not know the tuner {name[:60]!r}")
    known = {field.name for field in dataclasses.fields(kind)}
    strange = [key for key, value in raw.items() if key not in known and value]
    if strange:
        raise _refused(path, f"PEFT {peft.__version__} does not know the field {strange[0]!r}")
    fields = {key: value for key, value in raw.items() if key in known} | {
        key: value for key, value in _NOT_OF_MODULES.items() if key in known
    }
    fields |= {"task_type": None, "inference_mode": True, "base_model_name_or_path": None}
    config = kind(**fields)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise _refused(path, "it adds to the input and changes no weights")
    return config


def read_task(adapter: Path) -> str | None:
    """Returns the task that an adapter was trained for, as PEFT has it."""
    task = read_json_object(adapter / CONFIG_NAME).get("task_type")
    return task if isinstance(task, str) else None


def _refused(path: Path, found: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        "the adapter cannot be merged",
        where=os.fspath(path),
        expected="a tuner whose layers PEFT merges",
        found=found,
        hint="install the PEFT that it was trained with, or keep it separate: --target adapter",
    )
