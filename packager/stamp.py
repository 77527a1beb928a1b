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


def stamp_lock(adapter: Path, base: str, progress: Progress) -> BaseLock:
    """Writes `base.lock.json` into an adapter's folder.

    Args:
        adapter: The adapter's folder.
        base: A folder, or `org/name[@revision]`.
        progress: Told of hashing.

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
    return write_lock(adapter, ref)
