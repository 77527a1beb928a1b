"""A release of adapters that become one first: the one is made aside, and released as any other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from packager.adapter import AdapterSpec, read_adapter
from packager.adapter.spec import CONFIG_NAME, WEIGHTS_NAME
from packager.combination import (
    Combination,
    CombinationRecord,
    CombinedSource,
    check_combination,
    render_record,
)
from packager.combine import combine_folders
from packager.digest import content_digest, hash_files
from packager.gather import gather
from packager.progress import Progress
from packager.untrusted import find_folder

_IDENTITY = (CONFIG_NAME, WEIGHTS_NAME)

Folders = tuple[tuple[str | None, Path], ...]


@contextmanager
def combined_adapter(
    adapters: Folders,
    combination: Combination,
    name: str,
    *,
    base: str | None,
    require_lock: bool,
    hollow: Path | None,
    progress: Progress,
) -> Iterator[tuple[Path, str]]:
    """Makes one adapter of several, in a temporary folder.

    Args:
        adapters: (name or None, folder) of each.
        combination: How.
        name: Of the result.
        base: `--base`.
        require_lock: `--require-lock`.
        hollow: For a dry run: an empty folder, as in `gather`; no weights are read then.
        progress: Told of what happens.

    Yields:
        The folder, and what a manifest keeps of the combination.

    Raises:
        BaseError: The adapters have different bases.
        LorapackError: An adapter cannot be read, or they do not go together.
    """
    check_combination(combination, len(adapters))
    apart = None
    if hollow is not None:
        apart = hollow / "combined"
        apart.mkdir()
    gathered = gather(
        adapters,
        base=base,
        require_lock=require_lock,
        licensed=False,
        targets=("adapter",),
        hollow=apart,
        progress=progress,
    )
    specs = [source.spec for source in gathered.adapters]
    names = [source.name for source in gathered.adapters]
    record = CombinationRecord(combination, tuple(map(_source, names, specs)))
    with tempfile.TemporaryDirectory(prefix="lorapack-combined-") as place:
        folder = Path(place) / name
        progress.stage(f"combine {len(specs)} adapters")
        combine_folders(specs, combination, folder, hollow=hollow is not None)
        gathered.check_unchanged()
        yield folder, render_record(record)


@contextmanager
def combined_again(record: CombinationRecord, name: str) -> Iterator[Path | None]:
    """Makes a combination again, as a manifest tells it.

    Yields:
        The folder, or None where an adapter is not where it was, or not as it was.

    Raises:
        LorapackError: An adapter cannot be read.
    """
    folders = [find_folder(source.directory) for source in record.sources]
    there = [folder for folder in folders if folder is not None]
    if len(there) < len(folders) or not _are_same(there, record):
        yield None
        return
    specs = [read_adapter(folder) for folder in there]
    with tempfile.TemporaryDirectory(prefix="lorapack-combined-") as place:
        folder = Path(place) / name
        combine_folders(specs, record.combination, folder)
        yield folder


def _source(name: str, spec: AdapterSpec) -> CombinedSource:
    digest = content_digest(hash_files(spec.directory, _IDENTITY))
    return CombinedSource(name, str(spec.directory.absolute()), digest)


def _are_same(folders: Sequence[Path], record: CombinationRecord) -> bool:
    return all(
        all((folder / name).is_file() for name in _IDENTITY)
        and content_digest(hash_files(folder, _IDENTITY)) == source.digest
        for folder, source in zip(folders, record.sources, strict=True)
    )
