"""`lorapack publish`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.option import DIRECTORY, json_option, print_json, print_text, size_text
from packager.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from packager.publish import PublishedRepo

SCHEMA_VERSION = 1


@click.command("publish")
@click.argument("bundle", type=DIRECTORY)
@click.option(
    "--hub",
    "repo",
    required=True,
    metavar="USER/NAME",
    help="Where on the Hub; several targets get one repository each.",
)
@click.option("--private", is_flag=True, help="Make new repositories private.")
@click.option("--dry-run", is_flag=True, help="Check everything and send nothing.")
@json_option
def command(bundle: Path, repo: str, private: bool, dry_run: bool, as_json: bool) -> None:
    """Send BUNDLE to the Hub: checked first, weights before the card, read back at the end.

    The token is the one of `hf auth login`, or HF_TOKEN. Run it again after an interruption:
    finished files are not sent twice.
    """
    from packager.publish import publish_hub

    with TerminalProgress() as progress:
        published = publish_hub(
            bundle, repo, private=True if private else None, dry_run=dry_run, progress=progress
        )
    if as_json:
        print_json(publish_document(published, dry_run=dry_run))
    else:
        print_text("\n".join(_lines(item, dry_run=dry_run) for item in published))


def publish_document(published: tuple[PublishedRepo, ...], *, dry_run: bool) -> dict[str, Any]:
    """Returns what `publish --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dry_run": dry_run,
        "repositories": [asdict(item) for item in published],
    }


def _lines(item: PublishedRepo, *, dry_run: bool) -> str:
    verb = "would send" if dry_run else "sent"
    kept = sum(file.state == "unchanged" for file in item.files)
    lines = [
        f"{item.target}/{item.name} → {item.url} ({'private' if item.private else 'public'})",
        f"  {verb} {size_text(item.sent_bytes)} in {len(item.files) - kept} files"
        + (f", {kept} were there already" if kept else ""),
    ]
    lines += [f"  {'would remove' if dry_run else 'removed'} {name}" for name in item.removed]
    if item.commit is not None:
        lines.append(f"  commit {item.commit}, read back and equal to the bundle")
    return "\n".join(lines)
