"""The one-step merge: one adapter into one model folder, without a bundle, a proof, or a card."""

from __future__ import annotations

from pathlib import Path

from packager.bundle import Staging, check_absent, check_free_space
from packager.emit.making import Making
from packager.gather import gather
from packager.manifest import FileEntry
from packager.mergebase import default_notes, merge_base_notes, settle_merge_base
from packager.plan import ReleaseOptions, plan_release
from packager.plan.option import MergeBase
from packager.progress import Progress
from packager.quantisation.training import LoadedIn
from packager.rehearsal import rehearse


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
