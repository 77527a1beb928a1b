"""`lorapack serve`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from packager.cli.option import DIRECTORY, json_option, print_json, print_text
from packager.cli.progress import TerminalProgress

_SCHEMA_VERSION = 1
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("serve")
@click.argument("bundle", type=DIRECTORY)
@click.argument(
    "engine_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ENGINE OPTION...]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--api-key-file",
    "key_file",
    type=_FILE,
    metavar="FILE",
    help="File with one API key a line.  [default: a new key for this run]",
)
@click.option(
    "--insecure-no-auth",
    "without_key",
    is_flag=True,
    help="Ask for no API key, and answer this machine only.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "vllm", "llama.cpp"]),
    default="auto",
    show_default=True,
    help="auto: vLLM if it is installed, else llama.cpp with the bundle's GGUF files.",
)
@click.option("--base", type=DIRECTORY, help="The base's folder, if it has moved.")
@click.option(
    "--vllm-python",
    type=_FILE,
    metavar="FILE",
    help="A Python in whose environment vLLM is installed.  [default: this one, or that of vllm "
    "on the PATH]",
)
@click.option("--log", type=_FILE, metavar="FILE", help="Keep what the engine prints.")
@json_option
def command(bundle: Path, engine_arguments: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Serve BUNDLE as an OpenAI-compatible endpoint on this machine, until Ctrl-C.

    Base and adapters are asked what the release's proof asked, and the endpoint opens only if
    every one of them answers as it should. Options after -- go to vLLM.
    """
    from packager.cli.main import Interrupted
    from packager.serve import ServeRequest, serve_bundle
    from packager.serve.snippet import render_snippets

    request = ServeRequest(bundle=bundle, engine_arguments=engine_arguments, **given)
    ready = False
    try:
        with TerminalProgress() as progress, serve_bundle(request, progress) as server:
            ready = True
            if as_json:
                print_json(_document(server.endpoint))
            else:
                print_text(render_snippets(server.endpoint))
            click.echo("ready; stop with Ctrl-C", err=True)
            server.wait()
    except (Interrupted, KeyboardInterrupt):
        # To stop what runs is what was asked for; before that, it is an interruption.
        if not ready:
            raise
        click.echo("stopped", err=True)


def _document(endpoint: Any) -> dict[str, Any]:
    key_file = endpoint.key_file
    return {
        "schema_version": _SCHEMA_VERSION,
        **asdict(endpoint),
        "key_file": None if key_file is None else str(key_file),
    }
