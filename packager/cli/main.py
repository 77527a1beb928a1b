"""The group `lorapack`: its commands by name, and what happens when one fails."""

from __future__ import annotations

import importlib
from typing import Any

import click

from packager import __version__
from packager.cli.message import render_error, render_interrupt, system_error
from packager.errors import LorapackError

_COMMANDS = {
    "inspect": "What the adapter is, and which target can carry it.",
    "lock": "Write base.lock.json: the exact base of an adapter.",
    "plan": "The dry run: tensors, files, bytes, memory, time.",
    "release": "Make a bundle and prove it.",
    "verify": "Check a bundle against its manifest, base and adapter.",
    "publish": "Send a bundle to the Hub, or to Ollama.",
    "serve": "Answer as base and adapters, in OpenAI's way.",
    "merge": "The one-step form: base + adapter to one model folder.",
    "train": "Fine-tune a base with LoRA and stamp the base lock.",
    "demo": "The whole way on a real small model, offline, on a CPU.",
}


class Interrupted(BaseException):
    """A signal asked to stop; holds its name, or nothing for Ctrl-C.

    Not a KeyboardInterrupt: where one of those passes through `exec` of a string, as in imports
    of large libraries, the interpreter ends by the signal even if it was handled.

    Source: CPython 3.11, Python/pythonrun.c (run_eval_code_obj) and Modules/main.c (Py_RunMain).
    """


class LazyGroup(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Returns the commands in the order of work."""
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Loads `packager.cli.<name>`."""
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f"packager.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a known failure becomes a message and exit code 1."""
        try:
            return super().invoke(ctx)
        except LorapackError as problem:
            click.echo(render_error(problem), err=True)
        except (KeyboardInterrupt, Interrupted) as problem:
            click.echo(render_interrupt(str(problem)), err=True)
        except BrokenPipeError:
            pass
        except OSError as problem:
            click.echo(render_error(system_error(problem)), err=True)
        except MemoryError:
            click.echo(
                "error: out of memory\n\nhint: close other programs, or add --no-behaviour",
                err=True,
            )
        return ctx.exit(1)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="lorapack")
def lorapack() -> None:
    """Turn a trained LoRA adapter into releases that provably behave like it did in training.

    \b
    lorapack release ./my-adapter --out ./my-release
    """
