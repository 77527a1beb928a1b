"""Every cell of the matrix does what the table says."""

from __future__ import annotations

import pytest

from packager.errors import LorapackError, RejectedPlanError
from tests.matrix.cell import Figures, UntrainableError, Workshop
from tests.matrix.feature import FEATURES, Feature
from tests.matrix.page import Result
from tests.matrix.table import Absent, Refused, cells, expect

# What rounding to the base's type does: to a tensor, beside PEFT's own merge rounded to it, and to
# the adapter's effect on the logits. Two sums in float32 may round a value to either side.
_EXCESS = {True: 2.0**-24, False: 2.0**-18}
_LOST = {True: 1e-5, False: 5e-2}
_LEAST_EFFECT = 0.02


def _name(value: str) -> str:
    return value


@pytest.mark.parametrize(("feature", "architecture"), cells(), ids=_name)
def test_a_cell_is_what_the_table_says(
    feature: str,
    architecture: str,
    workshop: Workshop,
    results: dict[tuple[str, str], Result],
) -> None:
    expected = expect(feature, architecture)
    figures: Figures | None = None
    if isinstance(expected, Refused):
        with pytest.raises(LorapackError) as refusal:
            workshop.run(feature, architecture)
        assert type(refusal.value).__name__ == expected.error
        assert expected.says in _message(refusal.value)
    elif isinstance(expected, Absent):
        if expected.says:
            with pytest.raises(UntrainableError, match=expected.says):
                workshop.run(feature, architecture)
    else:
        figures = workshop.run(feature, architecture)
        _check(figures, FEATURES[feature])
    results[feature, architecture] = Result(expected, figures)


def _message(problem: LorapackError) -> str:
    """The whole text: a plan is refused with every problem."""
    problems = problem.problems if isinstance(problem, RejectedPlanError) else (problem,)
    return "\n".join(str(item) for item in problems)


def _check(figures: Figures, feature: Feature) -> None:
    in_float32 = feature.base == "float32"
    assert figures.changed, "nothing was merged"
    assert figures.effect > _LEAST_EFFECT, "the adapter has next to no effect"
    excess = _EXCESS[in_float32] + feature.slack
    assert figures.excess <= excess, "PEFT's own merge is closer to the truth"
    # Some tuners compute otherwise than they merge: nobody is closer then than PEFT's own merge.
    assert figures.lost <= max(_LOST[in_float32], 1.5 * figures.lost_by_peft)
