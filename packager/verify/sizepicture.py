"""Size against KL: one dot for each quantisation of a model. Figures in, points and ticks out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.resource import read_resource
from packager.verify.figure import describe_bytes, describe_number
from packager.verify.picture import (
    Frame,
    Level,
    Picture,
    Point,
    Tick,
    describe_power,
    find_decades,
)
from packager.verify.proof import BehaviourCheck, VariantProof

_TEMPLATE = "templates/size_against_kl.svg.j2"
FRAME = Frame(height=360)
_WIDTH = FRAME.width - FRAME.left - FRAME.right
_HEIGHT = FRAME.height - FRAME.top - FRAME.bottom
_LETTER = 7.4
_LINE = 14.0
_GAP = 9.0
_MAX_Y_TICKS = 8
_LOWEST = -6
"""Exponent of the smallest KL that is told apart: nobody can tell anything below from zero."""
_STEPS = (1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
_LEAST_TICK_GAP = 62.0


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def render_size_picture(variants: Sequence[VariantProof]) -> str | None:
    """Returns the picture as an SVG file that stands by itself, or None without figures."""
    picture = plan_size_picture(variants)
    if picture is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(read_resource(_TEMPLATE))
    return template.render(picture=picture, frame=FRAME).lstrip() + "\n"


def plan_size_picture(variants: Sequence[VariantProof]) -> Picture | None:
    """Plans size against mean KL, both on logarithmic scales.

    A KL below a millionth of a nat lies on the axis. Returns None where nothing was compared.
    """
    measured = [(item, item.behaviour) for item in variants if item.behaviour is not None]
    if not measured:
        return None
    effect = measured[0][1].base_kl_mean
    _, high = find_decades([kl for kl in (*_means(measured), effect) if kl > 0])
    lowest, _ = find_decades([max(kl, 10.0**_LOWEST) for kl in (*_means(measured), effect)])
    low = min(max(lowest, _LOWEST), high - 2)
    axis = _SizeAxis.over([item.total_bytes for item, _ in measured])

    def height(value: float) -> float:
        exponent = math.log10(value) if value > 0 else low
        return FRAME.top + _HEIGHT * (high - min(max(exponent, low), high)) / (high - low)

    places = [
        (
            axis.place(item.total_bytes),
            height(check.kl_mean),
            item.quant,
            f"{item.quant}: {describe_bytes(item.total_bytes)}, mean KL "
            f"{describe_number(check.kl_mean)} nats",
        )
        for item, check in measured
    ]
    line = Level(height(effect), f"base without the adapter {describe_number(effect)}")
    every = math.ceil((high - low) / _MAX_Y_TICKS)
    return Picture(
        x_ticks=tuple(axis.ticks()),
        y_ticks=tuple(
            Tick(height(10.0**exponent), describe_power(exponent))
            for exponent in range(low, high + 1, every)
        ),
        x_title="size of the file",
        bars=(),
        clouds=(),
        levels=(line,),
        points=tuple(_label(places, line)),
        summary="; ".join(text for *_, text in places)
        + f"; the base without the adapter: {describe_number(effect)} nats",
    )


def _means(measured: Sequence[tuple[VariantProof, BehaviourCheck]]) -> Iterator[float]:
    return (check.kl_mean for _, check in measured)


@dataclass(frozen=True)
class _SizeAxis:
    """Logarithms of the sizes at both ends of the plot."""

    low: float
    high: float

    @classmethod
    def over(cls, sizes: Sequence[int]) -> Self:
        low, high = math.log(min(sizes)), math.log(max(sizes))
        spare = 0.12 * (high - low) or 0.5
        return cls(low - spare, high + spare)

    def place(self, size: float) -> float:
        return FRAME.left + _WIDTH * (math.log(size) - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[Tick]:
        last = -math.inf
        start = math.floor(self.low / math.log(10))
        for exponent in range(start, math.ceil(self.high / math.log(10)) + 1):
            for step in _STEPS:
                size = step * 10.0**exponent
                at = self.place(size)
                inside = FRAME.left + 8 <= at <= FRAME.left + _WIDTH - 20
                if inside and at - last >= _LEAST_TICK_GAP:
                    yield Tick(at, describe_bytes(round(size)))
                    last = at


def _label(places: Sequence[tuple[float, float, str, str]], line: Level) -> Iterator[Point]:
    """Puts each name beside its dot, where it meets neither a dot, nor a name, nor the line."""
    taken = [_Box(x - 5, y - 5, x + 5, y + 5) for x, y, _, _ in places]
    taken.append(_line_box(line))
    for x, y, name, text in places:
        width = len(name) * _LETTER
        choices = list(_choices(x, y, width))
        fitting = (it for it in choices if not any(it[2].meets(box) for box in taken))
        text_x, text_y, box = next(fitting, choices[0])
        taken.append(box)
        yield Point(x, y, name, text_x, text_y, text, _lead(x, y, box))


def _lead(x: float, y: float, box: _Box) -> str:
    """Joins a dot with a name that does not stand beside it."""
    to_x = min(max(x, box.left), box.right)
    to_y = min(max(y, box.top + 2), box.bottom - 2)
    if math.hypot(to_x - x, to_y - y) <= _GAP + 3:
        return ""
    return f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}"


def _line_box(line: Level) -> _Box:
    right = FRAME.left + len(line.text) * _LETTER
    return _Box(FRAME.left, line.at - 5 - _LINE, right, line.at + 3)


def _choices(x: float, y: float, width: float) -> Iterator[tuple[float, float, _Box]]:
    """Yields left end, base line and box of a name around a dot, the best first."""
    for left, middle in (
        (x + _GAP, y),
        (x - _GAP - width, y),
        (x - width / 2, y - _LINE),
        (x - width / 2, y + _LINE),
        (x + _GAP, y - _LINE),
        (x + _GAP, y + _LINE),
        (x - _GAP - width, y - _LINE),
        (x - _GAP - width, y + _LINE),
        *(
            (x + side, y + down * _LINE)
            for down in (-2, 2, -3, 3)
            for side in (_GAP, -_GAP - width, -width / 2)
        ),
    ):
        box = _Box(left, middle - _LINE / 2, left + width, middle + _LINE / 2)
        fits = FRAME.left + 2 <= box.left and box.right <= FRAME.width
        if fits and box.top >= 0 and box.bottom <= FRAME.height - FRAME.bottom - 1:
            yield left, middle + 4, box
    yield x + _GAP, y + 4, _Box(x + _GAP, y - _LINE / 2, x + _GAP + width, y + _LINE / 2)
