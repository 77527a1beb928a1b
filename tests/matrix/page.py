"""`docs/support.md`: the matrix as it was tested, for people who look for their adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from tests.matrix.architecture import ARCHITECTURES
from tests.matrix.cell import Figures
from tests.matrix.feature import FEATURES
from tests.matrix.table import Absent, Merged, Outcome, Refused

PAGE = Path(__file__).parents[2] / "docs" / "support.md"
_MARKS = {Merged: "✓", Refused: "✗", Absent: "–"}
_RELEASES = ("peft", "transformers", "torch")

Cells = Mapping[tuple[str, str], "Result"]


@dataclass(frozen=True)
class Result:
    """What a cell did, and its figures where it was merged."""

    outcome: Outcome
    figures: Figures | None = None


def render_page(results: Cells) -> str:
    """Returns the page.

    Args:
        results: Of every cell.
    """
    notes = _Notes()
    sections = [
        f"## {family}\n\n" + _table([name for name, _ in columns], results, notes)
        for family, columns in groupby(FEATURES.items(), lambda item: item[1].family)
    ]
    body = "\n".join(sections)
    return f"{_introduction(results)}\n{body}\n{notes.render()}"


def read_marks(page: str) -> dict[tuple[str, str], str]:
    """Returns the mark of each cell of a page, by titles of feature and architecture."""
    marks: dict[tuple[str, str], str] = {}
    heads: list[str] = []
    for line in page.splitlines():
        parts = [part.strip() for part in line.strip("|").split("|")] if line[:1] == "|" else []
        if parts and not parts[0].startswith("---") and not heads:
            heads = parts[1:]
        elif parts and not parts[0].startswith("---"):
            marks |= {
                (parts[0], head): part.partition("[")[0]
                for head, part in zip(heads, parts[1:], strict=True)
            }
        elif not parts:
            heads = []
    return marks


def mark_of(outcome: Outcome) -> str:
    """Returns the sign of an outcome."""
    return _MARKS[type(outcome)]


class _Notes:
    """Numbers reasons as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, outcome: Outcome) -> str:
        if isinstance(outcome, Merged):
            return mark_of(outcome)
        number = self._numbers.setdefault(outcome.reason, len(self._numbers) + 1)
        return f"{mark_of(outcome)}[^{number}]"

    def render(self) -> str:
        return "\n".join(f"[^{number}]: {reason}." for reason, number in self._numbers.items())


def _table(features: list[str], results: Cells, notes: _Notes) -> str:
    heads = [row.title for row in ARCHITECTURES.values()]
    lines = [f"| | {' | '.join(heads)} |", f"| --- |{' :-: |' * len(heads)}"]
    for feature in features:
        marks = [notes.mark(results[feature, name].outcome) for name in ARCHITECTURES]
        lines.append(f"| {FEATURES[feature].title} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def _introduction(results: Cells) -> str:
    figures = [item.figures for item in results.values() if item.figures is not None]
    exact = [
        item.figures
        for (feature, _), item in results.items()
        if item.figures is not None and FEATURES[feature].base == "float32"
    ]
    releases = ", ".join(f"{name} {version(name)}" for name in _RELEASES)
    return f"""# What is merged

Each cell is a test: a small random model of the architecture in the layout that its checkpoints
have on the Hub, an adapter that PEFT trained on it for a few steps, the merged model loaded again
from disk through its Auto class, and compared with PEFT: its logits with those of the adapter
model that is not merged, every tensor with `merge_and_unload` in float64, to which it has to be as
close as PEFT's own float32 merge. Made by `just support` with {releases}.

✓ merged: {len(figures)} cells. Where the base is float32, at most {max(f.lost for f in exact):.1e}
of the adapter's effect on the logits is lost, and no tensor is further from the truth than
{max(f.worst for f in exact):.1e} of its norm.
✗ refused before a byte is written, by a named error that says the way out.
– there is no such adapter.
"""
