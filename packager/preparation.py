"""What a release is made from: the request, its adapters made one, sources, plan, and base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packager.combination import Combination, combined_name
from packager.combined import combined_adapter
from packager.conversion import check_checkout
from packager.emit.making import Making
from packager.gather import Gathered, gather
from packager.mergebase import as_stored, merge_base_notes, settle_merge_base
from packager.plan import ReleaseOptions, ReleasePlan
from packager.plan.gguf import map_source
from packager.progress import Progress
from packager.recipe import plan_gathered
from packager.rehearsal import rehearse
from packager.verify.proof import MergeBaseCheck

if TYPE_CHECKING:
    from packager.gguf.imatrix import Imatrix


@dataclass(frozen=True)
class ReleaseRequest:
    """What a user asks for.

    Attributes:
        adapters: (name or None, folder) of each adapter.
        out: The bundle to appear.
        base: `--base`, or None.
        require_lock: Refuse an adapter without a lock.
        options: What the plan depends on.
        behaviour: Whether to prove behaviour where memory allows.
        threads: That quantise, or None for as many as this process may use.
        imatrix: An importance matrix, or None.
        combination: How the adapters become one, or None where they stay apart.
        name: Of what they become, or None for all their names.
    """

    adapters: tuple[tuple[str | None, Path], ...]
    out: Path
    base: str | None = None
    require_lock: bool = False
    options: ReleaseOptions = field(default_factory=ReleaseOptions)
    behaviour: bool = True
    threads: int | None = None
    imatrix: Path | None = None
    combination: Combination | None = None
    name: str | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that a release is made from.

    Attributes:
        gathered: The sources.
        plan: What is to be made of them.
        making: What else its files depend on.
        merge_bases: Adapter name → how merges onto both forms of the base compare.
    """

    gathered: Gathered
    plan: ReleasePlan
    making: Making
    merge_bases: Mapping[str, MergeBaseCheck] = field(default_factory=dict)


def plan_request(
    request: ReleaseRequest, progress: Progress, *, hollow: Path | None = None
) -> Prepared:
    """Gathers and plans; the disk is only read, but that a base on the Hub is fetched.

    Args:
        request: What is asked for.
        progress: Told of what happens.
        hollow: For a dry run, an empty folder: no weights are fetched, and what else is fetched
            is written there only.

    Raises:
        RejectedPlanError: With every problem found.
        LorapackError: A source cannot be read.
    """
    options, imatrix = request.options, None
    if options.llama_cpp:
        check_checkout(Path(options.llama_cpp))
    if request.imatrix is not None:
        from packager.gguf.imatrix import imatrix_keys, read_imatrix

        imatrix = read_imatrix(request.imatrix)
        options = replace(options, imatrix_keys=imatrix_keys(imatrix))
    gathered = gather(
        request.adapters,
        base=request.base,
        require_lock=request.require_lock,
        license_id=options.license,
        targets=options.targets,
        another_converter=bool(options.llama_cpp),
        hollow=hollow,
        progress=progress,
    )
    gathered = settle_merge_base(gathered, options)
    plan = _plan_settled(gathered, options)
    if imatrix is not None:
        _check_imatrix(imatrix, plan, gathered)
    threads = request.threads or len(os.sched_getaffinity(0))
    return Prepared(gathered, plan, Making(options, threads, imatrix))


@contextmanager
def joined(
    request: ReleaseRequest, progress: Progress, *, hollow: Path | None = None
) -> Iterator[ReleaseRequest]:
    """Gives the request with its adapters made one, where that is asked for.

    The one lies in a temporary folder as long as the context lasts.

    Raises:
        LorapackError: The adapters do not go together, or cannot be read.
    """
    if request.combination is None:
        yield request
        return
    name = combined_name(request.adapters, request.name)
    with combined_adapter(
        request.adapters,
        request.combination,
        name,
        base=request.base,
        require_lock=request.require_lock,
        hollow=hollow,
        progress=progress,
    ) as (folder, record):
        yield replace(
            request,
            adapters=((name, folder),),
            options=replace(request.options, combination=record),
            combination=None,
        )


def take_closer_base(
    prepared: Prepared, request: ReleaseRequest, progress: Progress
) -> tuple[Prepared, str]:
    """Merges onto the form of the base that is measured as closer to training.

    Returns:
        What is made then, with the figures, and one line of how that was decided; empty where
        nothing was to be.
    """
    from packager.verify.closerbase import measure_closer_base

    base = prepared.gathered.base
    if request.options.merge_base is not None or base.training is None:
        return prepared, ""
    if not request.behaviour:
        return prepared, "not measured: --no-behaviour was given"
    closer, line, figures = measure_closer_base(prepared.gathered, prepared.plan, progress)
    prepared = replace(prepared, merge_bases=figures)
    if closer == base.merge_base:
        return prepared, line
    gathered = as_stored(prepared.gathered)
    plan = _plan_settled(gathered, prepared.making.options)
    return replace(prepared, gathered=gathered, plan=plan), line


def _plan_settled(gathered: Gathered, options: ReleaseOptions) -> ReleasePlan:
    plan = plan_gathered(gathered, options)
    rehearse(gathered, plan)
    return replace(plan, notes=(*plan.notes, *merge_base_notes(gathered)))


def _check_imatrix(imatrix: Imatrix, plan: ReleasePlan, gathered: Gathered) -> None:
    from packager.gguf.imatrix import check_imatrix

    for target in plan.targets:
        if target.gguf is not None and target.converter is None:
            source = next(item for item in gathered.adapters if item.name == target.name)
            check_imatrix(imatrix, map_source(source, gathered.base.index))
