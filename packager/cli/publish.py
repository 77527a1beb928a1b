"""`lorapack publish`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.option import DIRECTORY, json_option, print_json, print_text, size_text
from packager.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from packager.publish import PublishedRepo
    from packager.publish.ollama import CreatedModel
    from packager.publish.store import StoredModel

SCHEMA_VERSION = 1
_ID_DIGITS = 12
"""As many as `ollama list` shows."""


@click.command("publish")
@click.argument("bundle", type=DIRECTORY)
@click.option(
    "--hub",
    "repo",
    metavar="USER/NAME",
    help="Where on the Hub; several targets get one repository each.",
)
@click.option(
    "--ollama",
    metavar="[USER/]NAME[:TAG]",
    help="Make models in the running Ollama, and push them if USER is given.",
)
@click.option(
    "--ollama-store",
    "store",
    type=DIRECTORY,
    help="Write models into this store of Ollama ($OLLAMA_MODELS), without a server.",
)
@click.option(
    "--ollama-name",
    "stored_name",
    metavar="[USER/]NAME[:TAG]",
    help="Their name in that store.  [default: the adapter's]",
)
@click.option("--private", is_flag=True, help="Make new repositories on the Hub private.")
@click.option("--dry-run", is_flag=True, help="Check everything and send nothing.")
@json_option
def command(
    bundle: Path,
    repo: str | None,
    ollama: str | None,
    store: Path | None,
    stored_name: str | None,
    private: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send BUNDLE to the Hub or to Ollama: checked first, read back at the end.

    The Hub's token is the one of `hf auth login`, or HF_TOKEN. Ollama is the one of OLLAMA_HOST;
    without a TAG every quant gets its own, and the default one `latest`. Run it again after an
    interruption: finished files are not sent twice.
    """
    if repo is None and ollama is None and store is None:
        raise click.UsageError("give --hub, --ollama or --ollama-store")
    if stored_name is not None and store is None:
        raise click.UsageError("--ollama-name goes with --ollama-store")
    made = Published((), (), ())
    with TerminalProgress() as progress:
        # What stays on this machine is tried out before anything is sent to the Hub.
        if store is not None:
            from packager.publish.store import publish_store

            stored = publish_store(bundle, store, stored_name, dry_run=dry_run, progress=progress)
            made = replace(made, stored=stored)
        if ollama is not None:
            from packager.publish.ollama import publish_ollama

            created = publish_ollama(bundle, ollama, dry_run=dry_run, progress=progress)
            made = replace(made, created=created)
        if repo is not None:
            from packager.publish import publish_hub

            sent = publish_hub(
                bundle, repo, private=True if private else None, dry_run=dry_run, progress=progress
            )
            made = replace(made, repositories=sent)
    if as_json:
        print_json(publish_document(made, dry_run=dry_run))
    else:
        print_text("\n".join(_lines(made, dry_run=dry_run)))


@dataclass(frozen=True)
class Published:
    """Everything that one call has published, or would."""

    repositories: tuple[PublishedRepo, ...]
    stored: tuple[StoredModel, ...]
    created: tuple[CreatedModel, ...]


def publish_document(made: Published, *, dry_run: bool) -> dict[str, Any]:
    """Returns what `publish --json` prints."""
    return {
        "schema_version": SCHEMA_VERSION,
        "dry_run": dry_run,
        "repositories": [asdict(item) for item in made.repositories],
        "stored": [asdict(item) for item in made.stored],
        "created": [asdict(item) for item in made.created],
    }


def _lines(made: Published, *, dry_run: bool) -> Iterator[str]:
    for stored in made.stored:
        yield from _stored_lines(stored, dry_run=dry_run)
    for created in made.created:
        yield from _created_lines(created, dry_run=dry_run)
    for repository in made.repositories:
        yield from _repository_lines(repository, dry_run=dry_run)


def _stored_lines(item: StoredModel, *, dry_run: bool) -> Iterator[str]:
    verb = "would write" if dry_run else "wrote"
    kept = sum(blob.state == "there" for blob in item.blobs)
    yield f"{item.target} {item.quant} → {item.name} ({item.id[:_ID_DIGITS]})"
    yield (
        f"  {verb} {size_text(item.written_bytes)} in {len(item.blobs) - kept} blobs"
        + (f", {kept} were there already" if kept else "")
    )
    if item.state == "replaced":
        yield f"  {'would replace' if dry_run else 'replaced'} the model of that name"


def _created_lines(item: CreatedModel, *, dry_run: bool) -> Iterator[str]:
    verb = "would send" if dry_run else "sent"
    yield f"{item.target} {item.quant} → {item.name} in Ollama {item.version} at {item.server}"
    kept = sum(file.state == "there" for file in item.files)
    yield (
        f"  {verb} {size_text(item.sent_bytes)} in {len(item.files) - kept} files"
        + (f", {kept} were there already" if kept else "")
    )
    if item.answer is not None:
        yield f"  asked {item.answer.question!r}, it says {item.answer.text!r}"
    if item.url is not None:
        yield f"  {'would push' if dry_run else 'pushed'} to {item.url}"


def _repository_lines(item: PublishedRepo, *, dry_run: bool) -> Iterator[str]:
    verb = "would send" if dry_run else "sent"
    kept = sum(file.state == "unchanged" for file in item.files)
    yield f"{item.target}/{item.name} → {item.url} ({'private' if item.private else 'public'})"
    yield (
        f"  {verb} {size_text(item.sent_bytes)} in {len(item.files) - kept} files"
        + (f", {kept} were there already" if kept else "")
    )
    for name in item.removed:
        yield f"  {'would remove' if dry_run else 'removed'} {name}"
    if item.commit is not None:
        yield f"  commit {item.commit}, read back and equal to the bundle"
