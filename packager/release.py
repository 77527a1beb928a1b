"""A release from end to end: stream what was planned, write, prove, show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packager.bundle import Staging, check_absent, check_free_space, make_folder, write_text
from packager.conversion import settle_plan
from packager.digest import content_digest
from packager.errors import ProofError
from packager.gather import Gathered
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
    settled_options,
)
from packager.plan import ReleaseOptions, ReleasePlan, TargetPlan
from packager.plan.choice import record_choices
from packager.preparation import Prepared, ReleaseRequest, joined, plan_request, take_closer_base
from packager.progress import Progress
from packager.serving.answer import Answers
from packager.verify.proof import Level, Proof, TargetProof, render_proof

if TYPE_CHECKING:
    pass

_REPORT_BYTES = 64 << 20
_MUCH_LOST = 0.25
"""Share of a tensor's change that rounding took; in float32 it is a millionth."""


@dataclass(frozen=True)
class Release:
    """What came of it."""

    bundle: Path
    plan: ReleasePlan
    manifest: Manifest
    proof: Proof


def _scratch_bytes(plan: ReleasePlan) -> int:
    """What another converter needs besides: the merged model, and as much again as GGUF."""
    sizes = [item.converter.nbytes for item in plan.targets if item.converter is not None]
    return 2 * max(sizes, default=0)


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
    prepared, decided = take_closer_base(plan_request(request, progress), request, progress)
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
