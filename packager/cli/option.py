"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from packager.plan.option import ReleaseOptions, parse_size
from packager.verify.figure import printable

Command = TypeVar("Command", bound=Callable[..., Any])
DIRECTORY = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
base_option = click.option(
    "--base", metavar="REF", help="The base: a folder, or org/name[@revision] on the Hub."
)


def release_options(function: Command) -> Command:
    """Adds what `plan` and `release` have in common."""
    for option in reversed(
        (
            click.argument("adapters", nargs=-1, required=True, metavar="[NAME=]ADAPTER..."),
            base_option,
            click.option("--require-lock", is_flag=True, help="Refuse an adapter without a lock."),
            click.option(
                "--target",
                "targets",
                multiple=True,
                type=click.Choice(["adapter", "merged", "ollama", "vllm"]),
                help="What to emit; default: all that the preflight allows.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["keep", "float32", "bfloat16", "float16"]),
                default="keep",
                show_default=True,
                help="Type of the merged weights.",
            ),
            click.option(
                "--max-shard-size",
                default="5GB",
                show_default=True,
                metavar="SIZE",
                help="Largest weights file, such as 5GB or 500MiB.",
            ),
            click.option(
                "--license", "license_id", metavar="ID", help="Licence id, if the base tells none."
            ),
            json_option,
        )
    ):
        function = option(function)
    return function


def parse_adapters(values: tuple[str, ...]) -> tuple[tuple[str | None, Path], ...]:
    """Splits `NAME=ADAPTER`; a folder whose path holds `=` is taken whole if it exists."""
    parsed: list[tuple[str | None, Path]] = []
    for value in values:
        name, sign, folder = value.partition("=")
        # Unlike Path.exists and Path.expanduser, these take any text.
        if sign and not os.path.lexists(value) and "/" not in name:
            parsed.append((name, Path(os.path.expanduser(folder))))  # noqa: PTH111
        else:
            parsed.append((None, Path(os.path.expanduser(value))))  # noqa: PTH111
    return tuple(parsed)


def parse_options(
    targets: tuple[Any, ...], dtype: str, max_shard_size: str, license_id: str | None
) -> ReleaseOptions:
    """Reads the options of a release.

    Raises:
        InputError: A size or type is not one.
    """
    from packager.dtype import parse_torch_dtype

    return ReleaseOptions(
        targets=tuple(dict.fromkeys(targets)) or None,
        dtype=None if dtype == "keep" else parse_torch_dtype(dtype),
        max_shard_bytes=parse_size(max_shard_size),
        license=license_id,
    )


def print_json(document: dict[str, Any]) -> None:
    """Prints the one document that stdout carries."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=1))


def print_text(text: str) -> None:
    """Prints lines for a person; what would act on the terminal is shown instead of sent."""
    click.echo("\n".join(map(printable, text.split("\n"))))


def size_text(count: float) -> str:
    """Returns bytes in the unit that a person would use."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
