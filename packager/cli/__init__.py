"""The command line: the only room that knows click. Commands are loaded when they are called."""

from __future__ import annotations

import sys

from packager.cli.main import lorapack


def main() -> None:
    """Runs `lorapack` and leaves with its exit code: 0 done, 1 known failure, 2 usage."""
    sys.exit(lorapack.main(prog_name="lorapack", standalone_mode=True))
