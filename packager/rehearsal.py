"""What PEFT is to merge, tried with made-up values before the first byte is written."""

from __future__ import annotations

from packager.errors import LorapackError, RejectedPlanError
from packager.gather import Gathered
from packager.plan import AdapterSource, ReleasePlan
from packager.plan.module import find_modules, is_module_tuner


def rehearse(gathered: Gathered, plan: ReleasePlan) -> None:
    """Tries the adapters of other tuners than LoRA that a plan merges.

    Only for them is PEFT loaded.

    Raises:
        RejectedPlanError: PEFT does not merge them, with every reason.
    """
    problems: list[LorapackError] = []
    merged = {target.name for target in plan.targets if target.target in ("merged", "ollama")}
    for source in gathered.adapters:
        if source.name in merged and is_module_tuner(source):
            problems += _try(source, gathered)
    if problems:
        raise RejectedPlanError(tuple(problems))


def _try(source: AdapterSource, gathered: Gathered) -> list[LorapackError]:
    from packager.tuner.trial import Attempt, try_tuner

    modules, problems = find_modules(source, gathered.base.index)
    attempts = (
        Attempt(module.module, module.parameters, (*module.tensors, *module.shared))
        for module in modules
    )
    folder = gathered.base.index.directory
    return problems or try_tuner(folder, source.spec.directory, attempts)
