"""The page says what the table says; `just support` writes it from what the cells did."""

from __future__ import annotations

from tests.matrix.architecture import ARCHITECTURES
from tests.matrix.feature import FEATURES
from tests.matrix.page import PAGE, mark_of, read_marks
from tests.matrix.table import Merged, cells, expect


def test_the_page_shows_every_cell_as_the_table_expects_it() -> None:
    marks = read_marks(PAGE.read_text(encoding="utf-8"))
    expected = {
        (FEATURES[feature].title, ARCHITECTURES[architecture].title): mark_of(
            expect(feature, architecture)
        )
        for feature, architecture in cells()
    }
    assert marks == expected


def test_every_reason_stands_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for feature, architecture in cells():
        outcome = expect(feature, architecture)
        if not isinstance(outcome, Merged):
            assert f": {outcome.reason}." in page
