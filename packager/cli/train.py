"""`lorapack train`: fine-tune with LoRA and stamp the base lock."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from packager.cli.option import DIRECTORY, json_option, print_json
from packager.cli.progress import TerminalProgress

SCHEMA_VERSION = 1


@click.command("train")
@click.option(
    "--base",
    required=True,
    metavar="REF",
    help="The base to train on: a folder, or org/name[@revision] on the Hub.",
)
@click.option(
    "--data",
    required=True,
    type=DIRECTORY,
    help='JSON Lines of {"messages": [{"role": …, "content": …}, …]}; the last answer is learnt.',
)
@click.option("--out", required=True, type=DIRECTORY, help="The adapter's folder; must not exist.")
@click.option("--rank", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--alpha", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--epochs", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--learning-rate", default=2e-3, show_default=True, type=click.FloatRange(min=0))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@json_option
def command(
    base: str,
    data: Path,
    out: Path,
    rank: int,
    alpha: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    as_json: bool,
) -> None:
    """Train a LoRA on conversations, in float32, and write base.lock.json beside it."""
    from packager.base import resolve_base
    from packager.train import TrainSettings, read_examples, train

    settings = TrainSettings(
        rank=rank, alpha=alpha, epochs=epochs, learning_rate=learning_rate, seed=seed
    )
    examples = read_examples(data)
    losses: list[float] = []
    with TerminalProgress() as progress:
        progress.stage("identify the base")
        ref = resolve_base(base, say=progress.say, on_bytes=progress.advance)
        progress.stage("train", epochs * len(examples))

        def on_step(_step: int, _steps: int, loss: float) -> None:
            losses.append(loss)
            progress.advance(1)

        train(ref, examples, out, settings, on_step=on_step)
    last = sum(losses[-len(examples) :]) / len(examples)
    if as_json:
        print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "adapter": str(out),
                "base": ref.title,
                "examples": len(examples),
                "settings": asdict(settings),
                "last_epoch_loss": last,
            }
        )
    else:
        click.echo(f"trained {out} on {len(examples)} conversations; last loss {last:.3f}")
        click.echo(f"locked to {ref.title}")
