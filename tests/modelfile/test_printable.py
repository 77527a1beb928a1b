"""The table of printable characters, against Go's own."""

from __future__ import annotations

import unicodedata
from itertools import accumulate
from pathlib import Path

from packager.modelfile.printable import drop_unprintable, find_dropped, is_printable
from tests.golang import run_go


def test_go_prints_everything_that_the_table_has() -> None:
    runs = run_go(Path(__file__).with_name("printable.go")).split()
    edges = list(accumulate(map(int, runs)))
    go = {c for start, end in zip(edges[::2], edges[1::2], strict=True) for c in range(start, end)}
    ours = {code for code in range(0x110000) if is_printable(chr(code))}
    assert ours <= go
    # What only Go has is younger than Unicode 15.0. No newer character is in this Python's tables
    # either, or it is one that this Python learnt later.
    younger = {code for code in go - ours if unicodedata.category(chr(code)) != "Cn"}
    assert not younger or unicodedata.unidata_version > "15.0.0"
    assert len(ours) == 148_998


def test_what_ollama_drops() -> None:
    joined = "🏴\u200d☠\ufe0f a\u00a0b\u3000c\u2028d\u00ad\x00\x1b"
    assert drop_unprintable(joined) == "🏴☠\ufe0f abcd"
    assert find_dropped("tabs\tand\nlines\r\n日本語 é 🙂 ~") is None
    assert find_dropped("a\u200db") == "\u200d"
    assert find_dropped("form\x0cfeed") == "\x0c"
