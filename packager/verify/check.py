"""Running the levels of a proof over a bundle, finished or still staged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packager.base import read_base
from packager.errors import LorapackError, WeakEffectError
from packager.gather import Gathered
from packager.manifest import FileEntry
from packager.plan import AdapterSource, ReleasePlan, TargetPlan
from packager.plan.fourbit import merge_parts
from packager.progress import Progress, Silent
from packager.serving.answer import Answers
from packager.serving.path import merged_folder
from packager.task import COMPARED, find_task
from packager.updatereader import adapter_tensors
from packager.verify.adaptertarget import adapter_digest, check_adapter
from packager.verify.files import check_files
from packager.verify.gguftarget import list_variants, prove_blocks, prove_models
from packager.verify.lora import check_gguf_lora, measure_gguf_lora
from packager.verify.machine import describe_machine, library_versions
from packager.verify.memory import available_bytes, behaviour_bytes, llama_bytes
from packager.verify.proof import (
    LEVELS,
    SCHEMA_VERSION,
    FilesCheck,
    Level,
    MergeBaseCheck,
    Proof,
    TargetProof,
)
from packager.verify.quantised import why_not_exact, why_not_loaded, why_not_run
from packager.verify.reference import References
from packager.verify.served import check_served_weights
from packager.verify.servedtarget import ServerProof, prove_server
from packager.verify.truthrows import TruthSources
from packager.verify.weights import Sources, check_weights
from packager.verify.wholetarget import WholeProof, prove_whole

_BYTES_OF_A_VALUE = 16
"""Recomputing a value of a GGUF file, which quantises it twice, takes as long as recomputing so
many bytes of safetensors."""


@dataclass(frozen=True)
class ProofRequest:
    """What to prove of which bundle.

    Attributes:
        bundle: Its folder.
        entries: Its files, as in the manifest.
        plan: What it should be.
        gathered: What it is made from.
        levels: Which levels to run.
        sample_bytes: As of `check_weights`.
        why_not: Level → why it was not asked for.
        importance: Tensor name → weight of each column, as given to the writer of GGUF.
        answers: Adapter → what base and adapter have to answer on a server; filled in while they
            are made. None compares with those that the bundle holds.
        merge_bases: As of `References`, where it was measured before writing.
        may_be_unproven: Whether servers are left without answers where an adapter is too weak to
            be told from the base, instead of being refused.
    """

    bundle: Path
    entries: tuple[FileEntry, ...]
    plan: ReleasePlan
    gathered: Gathered
    levels: tuple[Level, ...] = LEVELS
    sample_bytes: int | None = None
    why_not: dict[str, str] | None = None
    importance: Mapping[str, NDArray[np.float32]] | None = None
    answers: Answers | None = None
    merge_bases: Mapping[str, MergeBaseCheck] | None = None
    may_be_unproven: bool = False


def prove(request: ProofRequest, progress: Progress) -> Proof:
    """Runs the levels that were asked for and returns what they found, good or bad.

    Raises:
        LorapackError: A source cannot be read, or an artefact cannot be loaded at all.
    """
    gathered = request.gathered
    with (
        ThreadPoolExecutor(2, thread_name_prefix="files") as pool,
        References(gathered, Steps(progress), request.merge_bases) as references,
    ):
        files = pool.submit(_check_all_files, request, progress)
        if request.sample_bytes is None:
            files.result()
        # A sample is recomputed, and the base hashed, while files are read: one waits for the
        # disk, the others for the cores.
        base = pool.submit(lambda: gathered.ref.digest)
        targets: list[TargetProof] = []
        for target in request.plan.targets:
            done = _prove_target(request, target, files, references, targets, progress)
            targets.append(done)
        base_digest = base.result()
    return Proof(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=gathered.ref.title,
        base_digest=base_digest,
        evidence=gathered.base.evidence,
        adapters={source.name: adapter_digest(source) for source in gathered.adapters},
        versions=library_versions(),
        machine=describe_machine(),
        targets=tuple(targets),
    )


def _check_all_files(request: ProofRequest, progress: Progress) -> FilesCheck | None:
    if "files" not in request.levels:
        return None
    total = sum(entry.size for entry in request.entries)
    if "files" not in vars(request.gathered.ref):
        total += request.gathered.base.index.weights_bytes
    progress.stage("check files", total)
    return check_files(request.bundle, request.entries, progress.advance)


def _prove_target(
    request: ProofRequest,
    target: TargetPlan,
    files: Future[FilesCheck | None],
    references: References,
    before: Sequence[TargetProof],
    progress: Progress,
) -> TargetProof:
    skipped: dict[str, str] = {
        level: "not asked for" for level in LEVELS if level not in request.levels
    }
    skipped.update(request.why_not or {})
    start = TargetProof(
        target.target, target.name, None, None, None, skipped, list_variants(target)
    )
    proof = start
    failure: LorapackError | None = None
    if "weights" in request.levels and not (files.done() and _is_broken(request, target, files)):
        try:
            # A sample is taken while the files have the bar.
            shown = progress if request.sample_bytes is None else Silent()
            proof = _prove_weights(request, target, proof, before, shown)
        except LorapackError as problem:
            failure = problem
    own = _files_of(target, request.entries, files.result())
    broken = _is_broken(request, target, files)
    if broken:
        proof = start
        skipped.update(dict.fromkeys(("weights", "behaviour"), "the files are not as released"))
    elif failure is not None:
        raise failure
    if not broken and "behaviour" in request.levels:
        reason = why_no_behaviour(request, target)
        if reason:
            skipped["behaviour"] = reason
        else:
            try:
                proof = _prove_behaviour(request, target, proof, references, before, progress)
            except WeakEffectError as weak:
                if not request.may_be_unproven:
                    raise
                skipped["behaviour"] = f"{weak.what}; {weak.hint}"
    return replace(proof, files=own)


def _is_broken(request: ProofRequest, target: TargetPlan, files: Future[FilesCheck | None]) -> bool:
    own = _files_of(target, request.entries, files.result())
    return own is not None and bool(own.problems)


def _files_of(
    target: TargetPlan, entries: tuple[FileEntry, ...], files: FilesCheck | None
) -> FilesCheck | None:
    """The part of the check that concerns one target; a stray file concerns all."""
    if files is None:
        return None
    folders = [target.path, *([merged_folder(target.name)] if target.whole is not None else [])]
    places = tuple(f"{folder}/" for folder in folders)
    own = [entry for entry in entries if entry.path.startswith(places)]
    paths = {entry.path for entry in entries} - {entry.path for entry in own}
    problems = [line for line in files.problems if line.split(" ", 1)[0] not in paths]
    return FilesCheck(len(own), sum(entry.size for entry in own), tuple(problems))


def _prove_weights(
    request: ProofRequest,
    target: TargetPlan,
    proof: TargetProof,
    before: Sequence[TargetProof],
    progress: Progress,
) -> TargetProof:
    source = _source_of(request, target)
    folder = request.bundle / target.path
    if target.target == "adapter":
        return replace(proof, weights=check_adapter(source, folder))
    if target.whole is not None:
        return replace(proof, weights=_merged_of(target, before).weights)
    if target.converter is not None:
        proof.skipped["weights"] = "converted by another program; its behaviour is measured"
        return proof
    if target.gguf_lora is not None:
        return replace(proof, weights=check_gguf_lora(target.gguf_lora, folder, source.spec))
    if target.served is not None:
        check = check_served_weights(folder, target.name, target.served, source.spec)
        return replace(proof, weights=check)
    return _recompute(request, target, proof, progress)


def _recompute(
    request: ProofRequest, target: TargetPlan, proof: TargetProof, progress: Progress
) -> TargetProof:
    """Makes merged weights again from base and adapter."""
    source = _source_of(request, target)
    folder = request.bundle / target.path
    index = request.gathered.base.index
    tensors = adapter_tensors({source.name: source.spec.tensors})
    progress.stage("recompute weights", target.nbytes)
    if target.gguf is not None:
        return prove_blocks(
            proof,
            target.gguf,
            folder,
            TruthSources(index.tensors, tensors),
            importance=request.importance,
            sample_values=request.sample_bytes and request.sample_bytes // _BYTES_OF_A_VALUE,
            on_bytes=progress.advance,
        )
    check = check_weights(
        merge_parts(target.tensors),
        read_base(folder),
        Sources(index, tensors),
        sample_bytes=request.sample_bytes,
        on_bytes=progress.advance,
    )
    return replace(proof, weights=check)


def _merged_of(target: TargetPlan, before: Sequence[TargetProof]) -> TargetProof:
    """Returns what came of the merged model that a server loads as a whole."""
    return next(item for item in before if (item.target, item.name) == ("merged", target.name))


def why_no_behaviour(request: ProofRequest, target: TargetPlan) -> str:
    """Says why the behaviour of a target cannot be measured here; empty where it can."""
    source = _source_of(request, target)
    index = request.gathered.base.index
    if target.target == "adapter":
        return "kept separate: base and adapter, loaded together, are the truth itself"
    task = find_task(source.spec.config.task_type, index.architecture, index.config)
    if task.name not in COMPARED:
        return f"there is no comparison for models of class {index.architecture}"
    training = request.gathered.base.training
    reason = why_not_loaded(index.config, training) or why_not_exact(index)
    reason = reason or why_not_run(target.tensors)
    if reason:
        return reason
    rows = index.embedding.shape[0] if index.embedding is not None else 0
    needed, free = behaviour_bytes(index.parameter_count, rows), available_bytes()
    if target.gguf is not None:
        largest = max(variant.total_bytes for variant in list_variants(target))
        needed = max(needed, llama_bytes(largest, rows))
    if target.gguf_lora is not None:
        needed = max(needed, llama_bytes(index.weights_bytes, rows))
    if needed > free:
        return (
            f"needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; "
            "run lorapack verify on a larger machine"
        )
    return ""


def _prove_behaviour(
    request: ProofRequest,
    target: TargetPlan,
    proof: TargetProof,
    references: References,
    before: Sequence[TargetProof],
    progress: Progress,
) -> TargetProof:
    from packager.verify.behaviour import check_merged
    from packager.verify.embedding import check_embedding

    folder, report = request.bundle / target.path, Steps(progress)
    if target.whole is not None:
        return _prove_whole(request, target, proof, references, before, progress)
    if request.plan.serving is not None and target.served is not None:
        server = ServerProof(
            folder, request.plan.serving, target.served, request.gathered, request.answers
        )
        check = prove_server(server, _source_of(request, target), references, report)
        return replace(proof, behaviour=check)
    source = _source_of(request, target)
    if target.target in ("merged", "ollama"):
        proof = replace(proof, merge_base=references.compare_merge_bases(source))
    truth, tokenizer = references.find(source)
    if target.gguf is not None:
        parameters = request.gathered.base.index.parameter_count
        return prove_models(proof, folder, truth, tokenizer, parameters=parameters, progress=report)
    if target.gguf_lora is not None:
        lora = measure_gguf_lora(target.gguf_lora, folder, request.gathered, truth, progress=report)
        return replace(proof, behaviour=lora)
    if truth.reading.measure == "embedding":
        return replace(proof, embedding=check_embedding(truth, folder, progress=report))
    return replace(proof, behaviour=check_merged(truth, folder, progress=report))


def _prove_whole(
    request: ProofRequest,
    target: TargetPlan,
    proof: TargetProof,
    references: References,
    before: Sequence[TargetProof],
    progress: Progress,
) -> TargetProof:
    merged = _merged_of(target, before)
    if merged.behaviour is None or request.plan.serving is None:
        proof.skipped["behaviour"] = merged.skipped.get("behaviour", "not asked for")
        return proof
    asked = WholeProof(
        bundle=request.bundle,
        folder=target.path,
        base=request.plan.serving.server_of(target.name).base,
        entries=request.entries,
        gathered=request.gathered,
        answers=request.answers,
    )
    source = _source_of(request, target)
    check = prove_whole(asked, source, merged.behaviour, references, Steps(progress))
    return replace(proof, behaviour=check)


def _source_of(request: ProofRequest, target: TargetPlan) -> AdapterSource:
    return next(item for item in request.gathered.adapters if item.name == target.name)


class Steps:
    """Passes counted steps on as stages."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._title = ""
        self._done = 0

    def __call__(self, title: str, done: int, total: int) -> None:
        """Tells of a step."""
        if title != self._title:
            self._title, self._done = title, 0
            self._progress.stage(title, total)
        self._progress.advance(done - self._done)
        self._done = done
