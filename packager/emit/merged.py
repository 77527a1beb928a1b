"""The files of a model folder: merged weights, and what stands beside weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from packager.bundle import copy_new, write_text
from packager.digest import hash_file
from packager.gather import Gathered
from packager.lock import LOCK_NAME, BaseLock, make_lock, read_lock, render_lock
from packager.manifest import FileEntry
from packager.modelconfig import render_model_config
from packager.obligation import notice_text
from packager.plan import AdapterSource, PlannedFile, TargetPlan
from packager.plan.layout import INDEX_NAME, NOTICE_NAME
from packager.sinks.peft import (
    render_folded_config,
    render_pinned_config,
    write_folded_weights,
)
from packager.sinks.safetensors import render_index
from packager.untrusted import resolve_inside


def file_entry(folder: Path, path: str) -> FileEntry:
    """Hashes a file that was just written."""
    return FileEntry(path, (folder / path).stat().st_size, hash_file(folder / path))


def write_file(
    folder: Path, file: PlannedFile, target: TargetPlan, source: AdapterSource, gathered: Gathered
) -> None:
    """Writes one planned file besides the weights: a copy, or what is rendered."""
    origins = {"adapter": source.spec.directory, "base": gathered.ref.directory}
    if file.origin in origins:
        root = origins[file.origin]
        copy_new(resolve_inside(root, file.path, where=str(root)), folder / file.path)
    elif file.path == "normalised/adapter_model.safetensors":
        write_folded_weights(source.spec, folder / file.path)
    else:
        write_text(folder / file.path, _render_file(file.path, target, source, gathered))


def _lock_of(source: AdapterSource, gathered: Gathered) -> BaseLock:
    """The adapter's own lock, or a new one; with what is known of training."""
    lock = read_lock(source.spec.directory)
    lock = lock or make_lock(gathered.ref, evidence=gathered.base.evidence)
    if source.training is None or lock.training_quantization is not None:
        return lock
    return replace(lock, training_quantization=source.training.to_settings())


def _render_file(path: str, target: TargetPlan, source: AdapterSource, gathered: Gathered) -> str:
    if path == "config.json":
        return render_model_config(gathered.base.index, target)
    if path == INDEX_NAME:
        return render_index(target.shards)
    if path == NOTICE_NAME:
        return notice_text(gathered.base.license) or ""
    if path == LOCK_NAME:
        return render_lock(_lock_of(source, gathered))
    render = render_folded_config if path.startswith("normalised/") else render_pinned_config
    return render(source.spec, gathered.ref)
