"""The command line: the only room that knows click. Commands are loaded when they are called."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from packager.cli.main import lorapack


def main() -> None:
    """Runs `lorapack` and leaves with its exit code: 0 done, 1 known failure, 2 usage."""
    _clean_up_on_signals()
    sys.exit(lorapack.main(prog_name="lorapack", standalone_mode=True))


def _clean_up_on_signals() -> None:
    """Lets `kill` and a closed terminal clean up as Ctrl-C does; nohup still holds them off."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)
