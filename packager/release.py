"""A release from end to end: gather, plan, stream, write, prove, show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packager.bundle import Staging, check_absent, check_free_space, make_folder, write_text
from packager.combination import Combination, combined_name
from packager.combined import combined_adapter
from packager.conversion import check_checkout, settle_plan
from packager.digest import content_digest
from packager.emit.making import Making
from packager.errors import ProofError
from packager.gather import Gathered, gather
from packager.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    AdapterRecord,
    BaseRecord,
    FileEntry,
    Manifest,
    TargetRecord,
    render_manifest,
)
from packager.mergebase import (
    as_stored,
    default_notes,
    merge_base_notes,
    settle_merge_base,
    settled_options,
)
from packager.plan import ReleaseOptions, ReleasePlan, TargetPlan, plan_release
from packager.plan.choice import record_choices
from packager.plan.gguf import map_source
from packager.plan.option import MergeBase
from packager.progress import Progress
from packager.quantisation.training import LoadedIn
from packager.recipe import plan_gathered
from packager.rehearsal import rehearse
from packager.serving.answer import Answers
from packager.verify.proof import Level, MergeBaseCheck, Proof, TargetProof, render_proof

if TYPE_CHECKING:
    from packager.gguf.imatrix import Imatrix

_REPORT_BYTES = 64 << 20
_MUCH_LOST = 0.25
"""Share of a tensor's change that rounding took; in float32 it is a millionth."""


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
class Release:
    """What came of it."""

    bundle: Path
    plan: ReleasePlan
    manifest: Manifest
    proof: Proof


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


def _plan_settled(gathered: Gathered, options: ReleaseOptions) -> ReleasePlan:
    plan = plan_gathered(gathered, options)
    rehearse(gathered, plan)
    return replace(plan, notes=(*plan.notes, *merge_base_notes(gathered)))


def _take_closer_base(
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


def _scratch_bytes(plan: ReleasePlan) -> int:
    """What another converter needs besides: the merged model, and as much again as GGUF."""
    sizes = [item.converter.nbytes for item in plan.targets if item.converter is not None]
    return 2 * max(sizes, default=0)


def _check_imatrix(imatrix: Imatrix, plan: ReleasePlan, gathered: Gathered) -> None:
    from packager.gguf.imatrix import check_imatrix

    for target in plan.targets:
        if target.gguf is not None and target.converter is None:
            source = next(item for item in gathered.adapters if item.name == target.name)
            check_imatrix(imatrix, map_source(source, gathered.base.index))


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


def release(request: ReleaseRequest, progress: Progress) -> Release:
    """Makes a bundle, proves it, and shows it by one rename.

    Raises:
        RejectedPlanError: The plan has problems; nothing was written.
        OutputError: `out` exists or cannot be written.
        ProofError: An artefact does not behave like base + adapter; nothing is left.
    """
    check_absent(request.out)
    with joined(request, progress) as asked:
        return _release(asked, progress)


def _release(request: ReleaseRequest, progress: Progress) -> Release:
    prepared, decided = _take_closer_base(plan_request(request, progress), request, progress)
    gathered, plan, making = prepared.gathered, prepared.plan, prepared.making
    for note in (*plan.notes, *([f"--merge-base: {decided}"] if decided else [])):
        progress.say(f"note: {note}")
    check_free_space(request.out, plan.output_bytes + _scratch_bytes(plan) + _REPORT_BYTES)
    with Staging(request.out) as staging:
        entries = [
            entry
            for target in plan.targets
            for entry in _write_folder(staging.root, target, prepared, progress)
        ]
        plan = settle_plan(plan, staging.root)
        prepared = replace(prepared, plan=plan)
        answers: Answers = {}
        proof = _prove(staging.root, tuple(entries), prepared, request, answers, progress)
        entries += _write_cards(staging.root, plan, gathered, entries, proof)
        entries += _write_server(staging.root, plan, gathered, proof, answers, progress)
        _write_report(staging.root, proof)
        manifest = _make_manifest(plan, gathered, entries, proof, making.options)
        write_text(staging.root / MANIFEST_NAME, render_manifest(manifest))
        gathered.check_unchanged()
        staging.commit()
    return Release(staging.out, plan, manifest, proof)


def merge_to_folder(
    base: str,
    adapter: Path,
    out: Path,
    max_shard_bytes: int,
    progress: Progress,
    *,
    merge_base: MergeBase | None = None,
    loaded_in: LoadedIn | None = None,
) -> tuple[FileEntry, ...]:
    """Merges one adapter into one model folder: no bundle, no proof, no card.

    Args:
        base: A folder, or `org/name[@revision]`.
        adapter: The adapter's folder.
        out: The folder to appear.
        max_shard_bytes: Largest weights file.
        progress: Told of bytes, and of what the adapter is merged onto and why.
        merge_base: As of `ReleaseOptions`; nothing is measured here.
        loaded_in: Likewise.

    Returns:
        Every file written, hashed.

    Raises:
        RejectedPlanError: The plan has problems; nothing was written.
        OutputError: `out` exists or cannot be written.
    """
    from packager.emit.target import write_target

    check_absent(out)
    options = ReleaseOptions(
        targets=("merged",),
        max_shard_bytes=max_shard_bytes,
        merge_base=merge_base,
        loaded_in=loaded_in,
    )
    gathered = gather(
        ((None, adapter),), base=base, licensed=False, targets=options.targets, progress=progress
    )
    gathered = settle_merge_base(gathered, options)
    plan = plan_release(gathered.adapters, gathered.base, options)
    rehearse(gathered, plan)
    for note in (*plan.notes, *merge_base_notes(gathered), *default_notes(gathered, options)):
        progress.say(f"note: {note}")
    check_free_space(out, plan.output_bytes)
    with Staging(out) as staging:
        target, making = plan.targets[0], Making(options)
        entries = tuple(write_target(staging.root, target, gathered, making, progress))
        gathered.check_unchanged()
        staging.commit()
    return entries


def _write_folder(
    root: Path, target: TargetPlan, prepared: Prepared, progress: Progress
) -> Iterator[FileEntry]:
    from packager.emit.target import write_target

    folder = root / target.path
    if not folder.exists():
        make_folder(folder)
    for entry in write_target(folder, target, prepared.gathered, prepared.making, progress):
        yield replace(entry, path=f"{target.path}/{entry.path}")


def _prove(
    root: Path,
    entries: tuple[FileEntry, ...],
    prepared: Prepared,
    request: ReleaseRequest,
    answers: Answers,
    progress: Progress,
) -> Proof:
    from packager.verify.check import ProofRequest, prove
    from packager.verify.weights import SAMPLE_BYTES

    imatrix = prepared.making.imatrix
    levels: tuple[Level, ...] = ("files", "weights")
    if request.behaviour:
        levels = (*levels, "behaviour")
    proof = prove(
        ProofRequest(
            bundle=root,
            entries=entries,
            plan=prepared.plan,
            gathered=prepared.gathered,
            levels=levels,
            sample_bytes=SAMPLE_BYTES,
            why_not={} if request.behaviour else {"behaviour": "--no-behaviour was given"},
            importance=None if imatrix is None else imatrix.weights,
            merge_bases=prepared.merge_bases,
            answers=answers,
            may_be_unproven=request.options.targets is None,
        ),
        progress,
    )
    for target in proof.targets:
        for level, reason in target.skipped.items():
            progress.say(f"note: {target.target}/{target.name}: {level} not checked: {reason}")
    prepared.gathered.check_unchanged()
    require_passed(proof)
    return proof


def require_passed(proof: Proof) -> None:
    """Refuses a proof with problems.

    Raises:
        ProofError: With the problems.
    """
    for target in proof.targets:
        if target.problems:
            raise ProofError(
                f"{target.target}/{target.name} does not behave like base + adapter",
                where=f"{target.target}/{target.name}",
                expected="every check to hold",
                found="; ".join(target.problems[:8]),
                hint=_way_out(target),
            )


def _way_out(target: TargetProof) -> str:
    """Says what to do about a failed check: where every weight is right, rounding is at fault."""
    weights = target.weights
    if weights is not None and not weights.problems and target.target == "merged":
        shares = [figure.lost_to_rounding for figure in weights.figures]
    else:
        shares = []
    if max(shares, default=0.0) > _MUCH_LOST:
        return "this type of weights holds too little of so small a change: add --dtype float32"
    return "run again; if it stays, report it with the output of lorapack plan --json"


def _write_cards(
    root: Path,
    plan: ReleasePlan,
    gathered: Gathered,
    entries: list[FileEntry],
    proof: Proof,
) -> list[FileEntry]:
    from packager.card import render_card
    from packager.cardfacts import PICTURE_NAME, card_facts
    from packager.emit.merged import file_entry
    from packager.filekind import CARD_NAME
    from packager.verify.sizepicture import render_size_picture

    cards = []
    for target, target_proof in zip(plan.targets, proof.targets, strict=True):
        if target.target == "vllm":
            continue
        proofs = (target_proof, proof)
        picture = render_size_picture(target_proof.variants)
        if picture is not None:
            write_text(root / target.path / PICTURE_NAME, picture)
            cards.append(file_entry(root, f"{target.path}/{PICTURE_NAME}"))
        facts = card_facts(root / target.path, target, gathered, entries, proofs)
        write_text(root / target.path / CARD_NAME, render_card(facts))
        cards.append(file_entry(root, f"{target.path}/{CARD_NAME}"))
    return cards


def _write_server(
    root: Path,
    plan: ReleasePlan,
    gathered: Gathered,
    proof: Proof,
    answers: Answers,
    progress: Progress,
) -> list[FileEntry]:
    from packager.serverfolder import write_server

    return list(write_server(root, plan, gathered, proof, answers, progress))


def _write_report(root: Path, proof: Proof) -> None:
    from packager.verify.report import render_report

    write_text(root / "report" / "VERIFY.json", render_proof(proof))
    write_text(root / "report" / "report.html", render_report(proof))


def _make_manifest(
    plan: ReleasePlan,
    gathered: Gathered,
    entries: list[FileEntry],
    proof: Proof,
    options: ReleaseOptions,
) -> Manifest:
    from packager.verify.adaptertarget import adapter_entries
    from packager.verify.machine import library_versions

    ref, base = gathered.ref, gathered.base
    adapters = []
    for source in gathered.adapters:
        files = adapter_entries(source)
        adapters.append(
            AdapterRecord(
                source.name, str(source.spec.directory.absolute()), content_digest(files), files
            )
        )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        tool=library_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=BaseRecord(
            repo=ref.repo,
            commit=ref.commit,
            directory=str(ref.directory),
            digest=ref.digest,
            evidence=base.evidence,
            license=base.license,
            license_source="--license" if options.license else gathered.finding.source,
            gated=ref.gated,
            architecture=base.index.architecture,
            files=ref.files,
        ),
        adapters=tuple(adapters),
        targets=tuple(
            TargetRecord(
                target.target,
                target.name,
                target.path,
                None if item.weights is None else item.weights.delta_difference,
            )
            for target, item in zip(plan.targets, proof.targets, strict=True)
        ),
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        options=record_choices(
            settled_options(options, gathered), {item.target for item in plan.targets}
        ),
    )
