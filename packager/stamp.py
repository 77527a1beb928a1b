"""Stamping an adapter with the lock of its base, after a look whether it fits that base."""

from __future__ import annotations

from pathlib import Path

from packager.adapter import read_adapter
from packager.base import read_base, resolve_base
from packager.errors import RejectedPlanError
from packager.gather import gather_adapter
from packager.lock import BaseLock, write_lock
from packager.plan.rule import plan_tensors
from packager.progress import Progress
from packager.quantisation.training import LoadedIn, TrainingQuantisation
from packager.trainingfact import read_training


def stamp_lock(
    adapter: Path, base: str, progress: Progress, *, loaded_in: LoadedIn | None = None
) -> BaseLock:
    """Writes `base.lock.json` into an adapter's folder.

    Args:
        adapter: The adapter's folder.
        base: A folder, or `org/name[@revision]`.
        progress: Told of hashing.
        loaded_in: How the base was quantised in training; else what a lock or the adapter's card
            says of it is kept.

    Raises:
        RejectedPlanError: The adapter does not fit this base.
        BaseError: The base cannot be found, or another weight of it came with the adapter.
        OutputError: The folder cannot be written.
    """
    spec = read_adapter(adapter)
    progress.stage("identify the base")
    ref = resolve_base(base, say=progress.say, on_bytes=progress.advance)
    source, index = gather_adapter(spec, None), read_base(ref.directory)
    planned, problems = plan_tensors(source, index, None)
    if problems:
        raise RejectedPlanError(tuple(problems))
    if any(tensor.copies for tensor in planned.values()):
        from packager.basecopy import check_base_copies  # torch is only loaded where it is needed

        check_base_copies(source, index)
    training = read_training(adapter, None)
    if loaded_in is not None and (training is None or training.loaded_in != loaded_in):
        training = TrainingQuantisation(loaded_in)
    settings = None if training is None else training.to_settings()
    return write_lock(adapter, ref, training_quantization=settings)
