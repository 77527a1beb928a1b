"""Size against KL: where dots and names stand, in the report and in a file of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from packager.verify.proof import VariantProof
from packager.verify.sizepicture import FRAME, plan_size_picture, render_size_picture
from tests.card_facts import make_variant

MEASURED = {
    "F32": (539_845_760, 1.7e-11), "F16": (270_886_016, 5e-6), "BF16": (270_886_016, 3.4e-4),
    "Q8_0": (144_811_136, 0.01), "Q6_K": (138_382_688, 0.0298), "Q5_K_M": (112_103_264, 0.538),
    "Q5_K_S": (109_974_368, 0.546), "Q4_K_M": (105_454_208, 0.153), "Q4_K_S": (102_039_392, 0.246),
    "Q4_0": (91_726_688, 0.756), "IQ4_XS": (91_311_968, 0.455), "Q3_K_M": (93_509_984, 0.426),
}  # fmt: skip
"""Quantisation → bytes and mean KL of the demo's model."""


def variants(*names: str) -> tuple[VariantProof, ...]:
    return tuple(make_variant(name, *MEASURED[name], 0.01) for name in names or MEASURED)


def test_smaller_is_further_left_and_closer_is_further_down() -> None:
    picture = plan_size_picture(variants("Q4_K_M", "Q8_0", "F16"))
    assert picture is not None
    small, middle, large = picture.points
    assert small.x < middle.x < large.x
    assert small.y < middle.y < large.y
    [line] = picture.levels
    assert line.at < small.y
    assert line.text == "base without the adapter 1.32"
    assert picture.summary == (
        "Q4_K_M: 105 MB, mean KL 0.153 nats; Q8_0: 145 MB, mean KL 0.0100 nats; "
        "F16: 271 MB, mean KL 5.0·10⁻⁶ nats; the base without the adapter: 1.32 nats"
    )


@pytest.mark.parametrize("names", [("Q8_0",), ("Q4_K_M", "Q8_0"), ("F16", "BF16"), ()])
def test_everything_is_in_the_frame_and_no_name_meets_another(names: tuple[str, ...]) -> None:
    picture = plan_size_picture(variants(*names))
    assert picture is not None
    assert len(picture.x_ticks) >= 2
    for point in picture.points:
        assert FRAME.left <= point.x <= FRAME.width - FRAME.right
        assert FRAME.top <= point.y <= FRAME.height - FRAME.bottom
        assert FRAME.left <= point.text_x <= FRAME.width - 7 * len(point.name)
    for one, other in combinations(picture.points, 2):
        apart = abs(one.text_y - other.text_y) >= 12
        left, right = sorted((one, other), key=lambda point: point.text_x)
        assert apart or left.text_x + 7 * len(left.name) <= right.text_x, (one, other)
    ticks = [tick.at for tick in picture.x_ticks]
    assert all(second - first >= 60 for first, second in pairwise(ticks))


def test_what_nobody_can_tell_from_zero_lies_on_the_axis() -> None:
    picture = plan_size_picture(variants("F32", "F16"))
    assert picture is not None
    assert picture.points[0].y == FRAME.height - FRAME.bottom
    assert picture.y_ticks[0].text == "10⁻⁶"


def test_a_kl_of_zero_and_one_that_is_off_the_scale_can_be_drawn() -> None:
    zero, huge = make_variant("F32", 1, 0.0, 0.0), make_variant("Q2_K", 10**12, 1000.0, 0.0)
    picture = plan_size_picture((zero, huge))
    assert picture is not None
    assert picture.points[0].y > picture.levels[0].at > picture.points[1].y >= FRAME.top


def test_without_figures_there_is_no_picture() -> None:
    assert plan_size_picture(()) is None
    assert render_size_picture([replace(variants("Q8_0")[0], behaviour=None)]) is None


def test_the_file_is_svg_that_stands_by_itself() -> None:
    text = render_size_picture(variants())
    assert text is not None
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {"".join(item.itertext()) for item in root.iter("{http://www.w3.org/2000/svg}text")}
    assert MEASURED.keys() <= words
    assert {"mean KL, nats", "size of the file"} <= words
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert text == render_size_picture(variants())


def test_names_are_text() -> None:
    text = render_size_picture([replace(variants("Q8_0")[0], quant="<script>&")])
    assert text is not None
    assert "<script>" not in text
    ET.fromstring(text)
