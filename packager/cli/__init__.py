"""The command line: the only room that knows click. Commands are loaded when they are called."""

from __future__ import annotations

import io
import logging
import signal
import sys
from types import FrameType

from packager.cli.main import Interrupted, lorapack


def main() -> None:
    """Runs `lorapack` and leaves with its exit code: 0 done, 1 known failure, 2 usage."""
    _write_utf8()
    _mute_libraries()
    _clean_up_on_signals()
    sys.exit(lorapack.main(prog_name="lorapack", standalone_mode=True))


def _write_utf8() -> None:
    """JSON is UTF-8 whatever the terminal's encoding is, and names come in every script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _mute_libraries() -> None:
    """Keeps off stderr what libraries log to nobody in particular, as bitsandbytes does."""
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.ERROR)


def _clean_up_on_signals() -> None:
    """Lets Ctrl-C, `kill` and a closed terminal clean up alike; nohup still holds them off."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted("" if number == signal.SIGINT else signal.Signals(number).name)
