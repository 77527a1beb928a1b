"""`lorapack verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.option import DIRECTORY, base_option, json_option, print_json
from packager.cli.progress import TerminalProgress


@click.command("verify")
@click.argument("bundle", type=DIRECTORY)
@click.option(
    "--level",
    type=click.Choice(["files", "weights", "behaviour"]),
    default="behaviour",
    show_default=True,
    help="How far to go; each level includes those before it.",
)
@base_option
@click.option("--report", type=DIRECTORY, help="Write VERIFY.json and report.html here.")
@json_option
def command(bundle: Path, level: Any, base: str | None, report: Path | None, as_json: bool) -> None:
    """Check BUNDLE: every byte, every tensor, and how it behaves. The bundle is only read."""
    from packager.release import require_passed
    from packager.verify.bundle import verify_bundle, write_report
    from packager.verify.proof import proof_document
    from packager.verify.text import render_proof_text

    with TerminalProgress() as progress:
        proof = verify_bundle(bundle, level=level, base=base, progress=progress)
    if report is not None:
        write_report(report, proof)
    if as_json:
        print_json(proof_document(proof))
    else:
        click.echo(render_proof_text(proof))
    require_passed(proof)
