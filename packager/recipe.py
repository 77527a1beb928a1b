"""What Ollama is told about a planned GGUF model, and the plan that it is settled in."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from packager.errors import LorapackError, RejectedPlanError
from packager.gather import Gathered
from packager.gguf.value import key_value
from packager.modelfile import (
    Modelfile,
    ModelfileError,
    Parameter,
    plan_modelfile,
    render_modelfile,
)
from packager.modelfile.plan import MAX_CONTEXT
from packager.plan import ReleaseOptions, ReleasePlan, TargetPlan, plan_release
from packager.untrusted import read_text, resolve_inside

_LICENSES = ("LICENSE*", "LICENCE*", "COPYING*", "USE_POLICY*")
# Source: llama.cpp 0c1e57098, gguf-py/gguf/constants.py, Keys.General.Sampling; ollama v0.33.0,
# api/types.go, Options. Ollama runs a model with its own values where none are given.
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
}  # fmt: skip


def plan_gathered(gathered: Gathered, options: ReleaseOptions) -> ReleasePlan:
    """Plans a release with what Ollama is told of each model; nothing is written.

    Where a Modelfile cannot carry a text, there is none, and a note: `create.json` carries all.

    Raises:
        RejectedPlanError: With every problem found.
        InputError: A licence's file cannot be read.
    """
    plan = plan_release(gathered.adapters, gathered.base, options)
    problems: list[LorapackError] = []
    targets: list[TargetPlan] = []
    notes = list(plan.notes)
    for target in plan.targets:
        settled, note = target, ""
        try:
            settled, note = _settle(target, gathered, options)
        except LorapackError as problem:
            problems.append(problem)
        targets.append(settled)
        notes += [note] if note else []
    if problems:
        raise RejectedPlanError(tuple(problems))
    return replace(plan, targets=tuple(targets), notes=tuple(notes))


def find_quants(target: TargetPlan) -> dict[str, tuple[str, ...]]:
    """Returns the quantisations of a planned GGUF model, each with its files in order."""
    files: dict[str, tuple[str, ...]] = {}
    for file in target.gguf.files if target.gguf is not None else ():
        files[file.quant] = (*files.get(file.quant, ()), file.path)
    return files


def make_recipe(
    target: TargetPlan, quant: str, gathered: Gathered, options: ReleaseOptions
) -> Modelfile:
    """Returns what Ollama is told about one quantisation of a model.

    Raises:
        InputError: The chat template takes no system message, or a licence cannot be read.
    """
    paths = find_quants(target).get(quant, (f"{target.name}-{quant}.gguf",))
    keys = target.gguf.keys if target.gguf is not None else ()
    context = next((key.value for key in keys if key.name.endswith(".context_length")), None)
    value = plan_modelfile(
        paths[0],
        gathered.chats[target.name],
        context_length=context if isinstance(context, int) else MAX_CONTEXT,
        system=options.system,
        licenses=_read_licenses(gathered),
    )
    return replace(value, parameters=(*value.parameters, *_sampling(target)))


def _settle(
    target: TargetPlan, gathered: Gathered, options: ReleaseOptions
) -> tuple[TargetPlan, str]:
    if target.target != "ollama":
        return target, ""
    recipe = make_recipe(target, options.quants[0], gathered, options)
    try:
        render_modelfile(recipe)
    except ModelfileError as problem:
        files = tuple(file for file in target.files if not file.path.startswith("Modelfile"))
        return replace(target, files=files), f"{target.path}: create.json only: {problem}"
    return target, ""


def _sampling(target: TargetPlan) -> list[Parameter]:
    """The model's own sampling settings."""
    keys = target.gguf.keys if target.gguf is not None else ()
    found = []
    for name, parameter in _SAMPLING.items():
        value = key_value(keys, f"general.sampling.{name}")
        if isinstance(value, (int, float)):
            found.append(Parameter(parameter, value))
    return found


def _read_licenses(gathered: Gathered) -> list[str]:
    folder = gathered.ref.directory
    return [
        read_text(resolve_inside(folder, name, where=str(folder)))
        for name in sorted(gathered.base.documents)
        if any(fnmatchcase(Path(name).name.upper(), pattern) for pattern in _LICENSES)
    ]
