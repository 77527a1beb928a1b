"""`lorapack merge`: the one-step form that people know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from packager.cli.option import DIRECTORY, json_option, print_json, print_text
from packager.cli.progress import TerminalProgress
from packager.plan.option import parse_size
from packager.quantisation.training import LOADED_IN


@click.command("merge")
@click.option("--base_model_path", "--base-model-path", "base", required=True, metavar="P",
              help="The base: a folder, or org/name[@revision] on the Hub.")  # fmt: skip
@click.option("--lora_adapter_path", "--lora-adapter-path", "adapter", required=True,
              type=DIRECTORY, metavar="P", help="The adapter's folder.")  # fmt: skip
@click.option("--output_path", "--output-path", "out", required=True, type=DIRECTORY,
              metavar="P", help="The merged model's folder; must not exist.")  # fmt: skip
@click.option("--max-shard-size", default="5GB", show_default=True, metavar="SIZE",
              help="Largest weights file.")  # fmt: skip
@click.option("--merge-base", type=click.Choice(["16bit", "dequantized"]),
              help="What an adapter is merged onto that was trained on a base loaded in 4 or 8 "
                   "bits. Nothing is measured here.  [default: dequantized, what the adapter was "
                   "trained to correct]")  # fmt: skip
@click.option("--loaded-in", type=click.Choice(LOADED_IN),
              help="How the base was loaded in training, where the adapter does not "
                   "say.")  # fmt: skip
@json_option
def command(
    base: str,
    adapter: Path,
    out: Path,
    max_shard_size: str,
    merge_base: Any,
    loaded_in: Any,
    as_json: bool,
) -> None:
    """Merge one adapter into its base: weights, configuration and tokenizer, ready to load.

    No proof and no card, and nothing is measured: for those, and for publishing, use
    `lorapack release`.
    """
    from packager.mergefolder import merge_to_folder

    with TerminalProgress() as progress:
        files = merge_to_folder(
            base,
            adapter,
            out,
            parse_size(max_shard_size),
            progress,
            merge_base=merge_base,
            loaded_in=loaded_in,
        )
    if as_json:
        document = {entry.path: {"size": entry.size, "sha256": entry.sha256} for entry in files}
        print_json({"schema_version": 1, "output": str(out.absolute()), "files": document})
    else:
        print_text(f"merged {out.absolute()}")
