"""Verifying a finished bundle: its sources are found again, checked by content, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from packager.bundle import read_manifest
from packager.combination import parse_record
from packager.combined import combined_again
from packager.conversion import settle_plan
from packager.digest import differing_files, hash_files
from packager.errors import BaseMismatchError, BundleError, RejectedPlanError, output_error
from packager.gather import Gathered, gather
from packager.manifest import MANIFEST_NAME, AdapterRecord, BaseRecord, FileEntry, Manifest
from packager.mergebase import settle_merge_base
from packager.plan import ReleasePlan
from packager.plan.choice import recall_choices
from packager.plan.serving import plan_servers
from packager.progress import Progress
from packager.recipe import plan_gathered
from packager.untrusted import find_folder, resolve_inside
from packager.verify.adaptertarget import ADAPTER_WEIGHTS
from packager.verify.check import ProofRequest, prove
from packager.verify.files import check_files
from packager.verify.machine import describe_machine, library_versions
from packager.verify.proof import LEVELS, SCHEMA_VERSION, Level, Proof, TargetProof, render_proof


def verify_bundle(bundle: Path, *, level: Level, base: str | None, progress: Progress) -> Proof:
    """Checks a bundle up to a level; the bundle is only read.

    Args:
        bundle: Its folder.
        level: The last level to run.
        base: Where the base is, if not where the manifest says.
        progress: Told of stages and bytes.

    Raises:
        BundleError: No bundle, or its adapter is nowhere to be found.
        BaseError: The base cannot be had.
        BaseMismatchError: The base is not the one that the bundle was made from.
    """
    manifest = read_manifest(bundle)
    _check_targets(bundle, manifest)
    levels = LEVELS[: LEVELS.index(level) + 1]
    if level == "files":
        return _verify_files(bundle, manifest, progress)
    options = recall_choices(manifest.options, (), where=MANIFEST_NAME)
    with _combine_again(manifest, options.combination) as combined:
        gathered = _gather_again(bundle, manifest, base, combined, progress)
        gathered = settle_merge_base(gathered, options)
        plan = settle_plan(_plan_again(manifest, gathered), bundle)
        return prove(ProofRequest(bundle, manifest.files, plan, gathered, levels), progress)


@contextmanager
def _combine_again(manifest: Manifest, combination: str) -> Iterator[Path | None]:
    """Makes the adapter of a bundle again where it was made of others, which still have to be here.

    Yields:
        Its folder, or None where the bundle's adapters are what was trained, or not all are here.
    """
    if not combination:
        yield None
        return
    record = parse_record(combination, where=MANIFEST_NAME)
    with combined_again(record, manifest.adapters[0].name) as folder:
        yield folder


def write_report(folder: Path, proof: Proof) -> None:
    """Writes `VERIFY.json` and `report.html` into a folder, replacing older ones.

    Raises:
        OutputError: The folder cannot be written.
    """
    from packager.verify.report import render_report

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "VERIFY.json").write_text(render_proof(proof), encoding="utf-8")
        (folder / "report.html").write_text(render_report(proof), encoding="utf-8")
    except OSError as problem:
        raise output_error(problem, folder) from problem


def _check_targets(bundle: Path, manifest: Manifest) -> None:
    """A manifest without a target would prove nothing, and say so as success."""
    adapters = {item.name for item in manifest.adapters}
    strange = [item.path for item in manifest.targets if item.name not in adapters]
    if strange or not manifest.targets:
        raise BundleError(
            "the manifest is damaged",
            where=str(bundle / MANIFEST_NAME),
            expected="targets of the adapters that it names",
            found=", ".join(strange[:5]) or "no target",
            hint="copy the bundle again, or release it again",
        )


def _verify_files(bundle: Path, manifest: Manifest, progress: Progress) -> Proof:
    progress.stage("check files", sum(entry.size for entry in manifest.files))
    files = check_files(bundle, manifest.files, progress.advance)
    skipped = dict.fromkeys(("weights", "behaviour"), "not asked for")
    record = manifest.base
    return Proof(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=f"{record.repo}@{record.commit}" if record.repo else Path(record.directory).name,
        base_digest=record.digest,
        evidence=record.evidence,
        adapters={item.name: item.digest for item in manifest.adapters},
        versions=library_versions(),
        machine=describe_machine(),
        targets=tuple(
            TargetProof(item.target, item.name, files, None, None, skipped)
            for item in manifest.targets
        ),
    )


def _gather_again(
    bundle: Path, manifest: Manifest, base: str | None, combined: Path | None, progress: Progress
) -> Gathered:
    folders = tuple(
        (item.name, _find_adapter(bundle, item, combined)) for item in manifest.adapters
    )
    gathered = gather(
        folders,
        base=base or _base_of(manifest.base),
        license_id=manifest.base.license,
        licensed=False,
        targets=tuple({item.target: None for item in manifest.targets}),
        another_converter="llama_cpp" in manifest.options,
        digests={item.name: item.digest for item in manifest.adapters},
        progress=progress,
    )
    differing = differing_files(manifest.base.files, gathered.ref.files)
    if differing:
        raise BaseMismatchError(
            f"{len(differing)} files of the base differ from those that the bundle was made from",
            where=str(gathered.ref.directory),
            expected=manifest.base.digest,
            found=", ".join(list(differing)[:5]),
            hint="give the base that it was made from with --base",
        )
    return gathered


def _plan_again(manifest: Manifest, gathered: Gathered) -> ReleasePlan:
    """Plans what the manifest says was emitted: each adapter has targets of its own."""
    plans = []
    for source in gathered.adapters:
        targets = tuple(item.target for item in manifest.targets if item.name == source.name)
        options = recall_choices(manifest.options, targets, where=MANIFEST_NAME)
        alone = replace(gathered, adapters=(source,))
        plans += [plan_gathered(alone, options)] if targets else []
    options = recall_choices(manifest.options, ("vllm",), where=MANIFEST_NAME)
    # Which server a merged model has depends on all adapters.
    placed, serving, problems = plan_servers(
        [item for plan in plans for item in plan.targets], gathered.adapters, gathered.base, options
    )
    if problems:
        raise RejectedPlanError(tuple(problems))
    return replace(plans[0], targets=placed, serving=serving)


def _base_of(record: BaseRecord) -> str:
    if record.repo and record.commit and find_folder(record.directory) is None:
        return f"{record.repo}@{record.commit}"
    return record.directory


def _find_adapter(bundle: Path, record: AdapterRecord, combined: Path | None) -> Path:
    """The folder released from, if all of it is as it was; else the bundle's own copy.

    What others were combined into is made again, and has to come out as it did.
    """
    origin = combined or find_folder(record.directory)
    if origin is not None and _holds(origin, record.files):
        return origin
    copy = resolve_inside(bundle, f"adapter/{record.name}", where=str(bundle / MANIFEST_NAME))
    # Its configuration names the base that it was released with; the manifest has its digest.
    weights = tuple(entry for entry in record.files if entry.path == ADAPTER_WEIGHTS)
    if weights and _holds(copy, weights):
        return copy
    raise BundleError(
        f"adapter {record.name!r} is not where the bundle was made from",
        where=record.directory,
        expected=record.digest,
        hint="put it back there, or release with --target adapter too, so that the bundle keeps it",
    )


def _holds(folder: Path, entries: tuple[FileEntry, ...]) -> bool:
    names = [entry.path for entry in entries]
    there = all((folder / name).is_file() for name in names)
    return there and set(hash_files(folder, names)) == set(entries)
