"""One module merged by PEFT's own layer: its weights and its part of the adapter, nothing else.

PEFT puts the adapter onto a model that has the weights of one module only. A tuner that looks at
its neighbours finds their shapes and their order, as in training; one that needs their values is
found out and refused.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from packager.errors import AdapterError, LorapackError
from packager.tuner.late import LATE, place_late
from packager.tuner.registry import CONFIG_NAME, read_config, read_task
from packager.tuner.skeleton import Filling, build_skeleton, fill_skeleton, place_weights, quiet

WRAPPER = "base_model.model."
_LOCK = RLock()
"""PEFT changes classes of torch while it makes layers, and one module is to be in memory."""


@dataclass(frozen=True)
class ModuleJob:
    """What is merged.

    Attributes:
        base: Folder of the base, for its configuration.
        adapter: Folder of the adapter, for its configuration.
        module: Dotted name.
        parameters: The module's own, by name, as the base has them, any floating type.
        tensors: The adapter's that belong to the module or to all modules, by name.
    """

    base: Path
    adapter: Path
    module: str
    parameters: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]


def merge_module(job: ModuleJob, dtype: torch.dtype) -> dict[str, Tensor]:
    """Merges one module as PEFT does.

    Args:
        job: What.
        dtype: Of the arithmetic: float32 or float64. A tuner that takes no float64 works in
            float32.

    Returns:
        The module's parameters by name, in `dtype`.

    Raises:
        AdapterError: PEFT does not merge it, or the result depends on other modules' weights.
        BaseError: transformers has no model for the base, or another one than is stored.
    """
    with _LOCK:
        workshop = _workshop(job.base, job.adapter, _stamp(job))
        try:
            return workshop.merge(job, dtype)
        except AdapterError:
            if dtype != torch.float64:
                raise
            made = workshop.merge(job, torch.float32)
            return {name: value.double() for name, value in made.items()}


def _stamp(job: ModuleJob) -> tuple[tuple[int, int], ...]:
    paths = (job.base / "config.json", job.adapter / CONFIG_NAME)
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, paths))


@lru_cache(maxsize=2)
def _workshop(base: Path, adapter: Path, _stamp: Any) -> Workshop:
    return Workshop(base, adapter)


class Workshop:
    """Merges modules of one base and one adapter.

    Args:
        base: Folder of the base.
        adapter: Folder of the adapter.

    Raises:
        AdapterError: PEFT does not know the tuner.
        BaseError: transformers has no model for the base.
    """

    def __init__(self, base: Path, adapter: Path) -> None:
        self._adapter = adapter
        self._config = read_config(adapter)
        self._skeleton = build_skeleton(base, read_task(adapter))
        self._filling: Filling | None = None

    def merge(self, job: ModuleJob, dtype: torch.dtype) -> dict[str, Tensor]:
        """Merges one module.

        Raises:
            AdapterError: PEFT fails, or the result depends on other modules' weights.
            BaseError: The module is not in the model.
        """
        if self._filling is None:
            self._filling = self._choose(job)
        try:
            return self._merge(job, dtype, self._filling)
        except AdapterError:
            # What all modules share may have to lie beside the first one that PEFT comes to.
            filling = self._choose(job)
            if filling == self._filling:
                raise
            self._filling = filling
            return self._merge(job, dtype, filling)

    def _choose(self, job: ModuleJob) -> Filling:
        """Finds what may stand for the other modules.

        Without values none can reach a result; where PEFT asks for some, two kinds of them have to
        lead to one result.
        """
        try:
            self._merge(job, torch.float32, "meta")
        except AdapterError:
            made = self._merge(job, torch.float32, "nan")
        else:
            return "meta"
        other = self._merge(job, torch.float32, "one")
        if all(torch.equal(value, other[name]) for name, value in made.items()):
            return "nan"
        raise self._refusal(job.module, "it needs the weights of all its modules at once")

    def _merge(self, job: ModuleJob, dtype: torch.dtype, filling: Filling) -> dict[str, Tensor]:
        model = copy.deepcopy(self._skeleton)
        fill_skeleton(model, filling, dtype, job.module, job.parameters)
        if self._config.peft_type not in LATE:
            place_weights(model.get_submodule(job.module), job.parameters, dtype)
        tensors = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in job.tensors.items()
        }
        try:
            # Without the checks, indices out of a stranger's file reach outside of the matrix.
            checks = torch.sparse.check_sparse_tensor_invariants()  # type: ignore[no-untyped-call]
            with quiet(), checks, torch.random.fork_rng(), torch.no_grad():
                made = self._through_peft(model, job, tensors, dtype)
        except LorapackError:
            raise
        except Exception as problem:
            text = " ".join(str(problem).split())
            found = f"{type(problem).__name__}: {text}" if text else type(problem).__name__
            raise self._refusal(job.module, found) from problem
        if set(made) != set(job.parameters) or any(value.is_meta for value in made.values()):
            raise self._refusal(job.module, f"PEFT makes {', '.join(sorted(made))} of it")
        return {name: value.to(dtype) for name, value in made.items()}

    def _through_peft(
        self,
        model: nn.Module,
        job: ModuleJob,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        module = job.module
        if self._config.peft_type == "FROD":
            # Loaded for it only: an older PEFT has none.
            from packager.tuner.frod import merge_frod

            merged = merge_frod(self._config, model.get_submodule(module), module, tensors)
            return _parameters(merged)
        tuned = get_peft_model(
            model, copy.deepcopy(self._config), low_cpu_mem_usage=True, autocast_adapter_dtype=False
        )
        self._check_names(tuned, module, tensors)
        layer = tuned.base_model.model.get_submodule(module)
        if not isinstance(layer, BaseTunerLayer):
            raise self._refusal(module, "adapter_config.json does not select it")
        if self._config.peft_type in LATE:
            place_late(tuned, layer, job.parameters, dtype)
        set_peft_model_state_dict(tuned, dict(tensors), low_cpu_mem_usage=True)
        tuned.base_model._check_merge_allowed()  # noqa: SLF001 - merge_and_unload begins so
        layer.merge()
        return _parameters(layer.get_base_layer())

    def _check_names(self, tuned: Any, module: str, tensors: Mapping[str, Tensor]) -> None:
        """Holds the tensors against those that PEFT saves of this module and of all together."""
        saved = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        own = {
            name
            for name in saved
            if name.startswith(f"{WRAPPER}{module}.") or not name.startswith(WRAPPER)
        }
        if own != set(tensors):
            missing, strange = sorted(own - set(tensors)), sorted(set(tensors) - own)
            raise AdapterError(
                f"the tensors of module {module!r} are not those that PEFT has for it",
                where=os.fspath(self._adapter),
                expected=", ".join(missing[:3]) or "none of these",
                found=", ".join(strange[:3]) or "none of them",
                hint="config and weights belong to different trainings: save the adapter again",
            )

    def _refusal(self, module: str, found: str) -> AdapterError:
        tuner = str(getattr(self._config.peft_type, "value", self._config.peft_type)).lower()
        return AdapterError(
            f"PEFT does not merge {tuner!r} on module {module!r}",
            where=os.fspath(self._adapter),
            expected="a merge of this one module",
            found=found[:300],
            hint="keep the adapter separate: --target adapter",
        )


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.named_parameters(recurse=False)}
