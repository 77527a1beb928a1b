"""A model without weights: what PEFT looks around in when it puts an adapter onto one module."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import logging

from packager.errors import BaseError
from packager.task import find_task, task_architecture
from packager.untrusted import read_json_object

Filling = Literal["meta", "nan", "one"]
"""What stands in the place of the weights of all other modules:

- `meta`: nothing; what is computed of them has no values, so none can reach a result.
- `nan`: NaN, one value for all; what is computed of them is NaN.
- `one`: likewise, ones.
"""

_VALUES = {"nan": float("nan"), "one": 1.0}


def build_skeleton(folder: Path, task_type: str | None) -> nn.Module:
    """Builds the model of a base's configuration, on no device; no weights are read.

    Args:
        folder: The base.
        task_type: Of the adapter, as PEFT has it.

    Raises:
        BaseError: transformers has no model for it.
    """
    raw = read_json_object(folder / "config.json")
    names = raw.get("architectures")
    first = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(
                os.fspath(folder), local_files_only=True, trust_remote_code=False
            )
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # its values are taken as what they stand for
            model = _model_class(raw, first, task_type, config)
    except Exception as problem:
        raise BaseError(
            "transformers has no model for this base, so PEFT cannot be asked",
            where=os.fspath(folder / "config.json"),
            found=f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300],
            hint="keep the adapter separate: --target adapter",
        ) from problem
    made: nn.Module = model.eval()
    return made


def _model_class(
    raw: Mapping[str, Any], architecture: str, task_type: str | None, config: Any
) -> Any:
    task = find_task(task_type, architecture, raw)
    wanted = getattr(transformers, task_architecture(task, architecture, raw), None)
    if isinstance(wanted, type) and hasattr(wanted, "_from_config"):
        return wanted._from_config(config, dtype=torch.float32)  # noqa: SLF001
    return getattr(transformers, task.auto_class).from_config(
        config, dtype=torch.float32, trust_remote_code=False
    )


def fill_skeleton(
    model: nn.Module, filling: Filling, dtype: torch.dtype, own: str, values: Mapping[str, Tensor]
) -> None:
    """Gives all parameters a filling that takes no memory; one module is to get its own weights.

    Args:
        model: From `build_skeleton`, or a copy; changed in place.
        filling: Of the parameters.
        dtype: Of all.
        own: Dotted name of the module.
        values: Its parameters by name.

    Raises:
        BaseError: The module has not these parameters, or they have other shapes.
    """
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(leaf, _filler(parameter.shape, filling, dtype))
    target = dict(model.named_modules()).get(own)
    there = {} if target is None else dict(target.named_parameters(recurse=False))
    wanted = {leaf: tuple(value.shape) for leaf, value in values.items()}
    if target is None or {leaf: tuple(item.shape) for leaf, item in there.items()} != wanted:
        raise BaseError(
            f"module {own!r} is not what transformers makes of this base",
            where=own,
            expected=", ".join(f"{leaf} {shape}" for leaf, shape in sorted(wanted.items())),
            found=", ".join(f"{leaf} {tuple(item.shape)}" for leaf, item in sorted(there.items()))
            or "no such module",
            hint="the checkpoint stores this module in other cuts: keep the adapter separate",
        )


def place_weights(module: nn.Module, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Gives a module its weights; they may be changed later, so these are copied."""
    for leaf, value in values.items():
        module.register_parameter(leaf, nn.Parameter(value.to(dtype, copy=True), False))


def _filler(shape: torch.Size, filling: Filling, dtype: torch.dtype) -> nn.Parameter:
    if filling == "meta":
        return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), False)
    value = torch.full((1,) * max(1, len(shape)), _VALUES[filling], dtype=dtype)
    return nn.Parameter(value.expand(shape), False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers and PEFT from warning and logging."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
