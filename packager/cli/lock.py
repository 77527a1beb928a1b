"""`lorapack lock`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from packager.cli.option import DIRECTORY, json_option, print_json, print_text
from packager.cli.progress import TerminalProgress
from packager.lock import LOCK_NAME
from packager.quantisation.training import LOADED_IN, LoadedIn


@click.command("lock")
@click.argument("adapter", type=DIRECTORY)
@click.option(
    "--base",
    required=True,
    metavar="REF",
    help="The base trained on: a folder, or org/name[@revision] on the Hub.",
)
@click.option(
    "--loaded-in",
    type=click.Choice(LOADED_IN),
    help="How bitsandbytes held the base in training, if it did.",
)
@json_option
def command(adapter: Path, base: str, loaded_in: LoadedIn | None, as_json: bool) -> None:
    """Write base.lock.json into ADAPTER: which base, which commit, sha256 of every file."""
    from packager.stamp import stamp_lock

    with TerminalProgress() as progress:
        lock = stamp_lock(adapter, base, progress, loaded_in=loaded_in)
    if as_json:
        print_json(asdict(lock))
    else:
        name = f"{lock.repo}@{lock.commit}" if lock.repo else lock.digest
        print_text(f"locked {adapter / LOCK_NAME} to {name}, {len(lock.files)} files")
