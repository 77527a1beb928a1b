"""`lorapack release`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packager.cli.option import (
    DIRECTORY,
    Given,
    parse_request,
    print_json,
    print_text,
    release_options,
)
from packager.cli.progress import TerminalProgress

if TYPE_CHECKING:
    from packager.release import Release

SCHEMA_VERSION = 1


@click.command("release")
@release_options
@click.option("--out", required=True, type=DIRECTORY, help="The bundle's folder; must not exist.")
@click.option("--no-behaviour", is_flag=True, help="Do not compare the behaviour.")
def command(as_json: bool, out: Path, no_behaviour: bool, **given: Any) -> None:
    """Make a bundle from one or more adapters, prove it, and show where it lies.

    NAME=ADAPTER names an adapter in the bundle; without a name its folder's name is taken.
    """
    from packager.release import release

    request = parse_request(Given(**given), out, behaviour=not no_behaviour)
    with TerminalProgress() as progress:
        made = release(request, progress)
    if as_json:
        print_json(release_document(made))
    else:
        _show(made)


def release_document(made: Release) -> dict[str, Any]:
    """Returns what `release --json` prints."""
    from packager.verify.proof import proof_document

    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": str(made.bundle),
        "targets": {
            f"{target.target}/{target.name}": str(made.bundle / target.path)
            for target in made.manifest.targets
        },
        "report": str(made.bundle / "report" / "report.html"),
        "proof": proof_document(made.proof),
    }


def _show(made: Release) -> None:
    from packager.verify.text import render_proof_text

    click.echo(render_proof_text(made.proof))
    for target in made.manifest.targets:
        print_text(f"{target.target:<14}{made.bundle / target.path}")
    print_text(f"report        {made.bundle / 'report' / 'report.html'}")
