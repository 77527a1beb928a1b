"""The geometry of the report's pictures: figures in, points and ticks out; no markup here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from packager.verify.figure import describe_number, describe_small_share
from packager.verify.proof import BehaviourCheck, TensorFigure


@dataclass(frozen=True)
class Frame:
    """Size of a picture and of the margins around its plot, in pixels."""

    width: int = 720
    height: int = 260
    left: int = 64
    right: int = 12
    top: int = 14
    bottom: int = 34


FRAME = Frame()
_PLOT_WIDTH = FRAME.width - FRAME.left - FRAME.right
_PLOT_HEIGHT = FRAME.height - FRAME.top - FRAME.bottom
_MAX_DOTS = 6000
_MAX_COLUMNS = 200
_MAX_X_TICKS = 16
_OTHER = "other"
_LOWEST_EXPONENT = -16


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in pixels and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Level:
    """A horizontal line across a picture: its height in pixels, its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Cloud:
    """Many dots as one SVG path, drawn as lines of no length with round ends."""

    path: str
    style: str


@dataclass(frozen=True)
class Bar:
    """A bar from the axis up, with the text that it shows when pointed at."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Point:
    """A dot with its name, and the text that it shows when pointed at.

    Attributes:
        x: Of the dot, like all places in pixels.
        y: Of the dot.
        name: Beside the dot.
        text_x: Where the name begins.
        text_y: Base line of the name.
        text: The whole of it.
        lead: Path of a line from the dot to a name that stands apart, or empty.
    """

    x: float
    y: float
    name: str
    text_x: float
    text_y: float
    text: str
    lead: str = ""


@dataclass(frozen=True)
class Picture:
    """Everything that a template needs to draw a picture, in the pixels of `FRAME`."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    bars: tuple[Bar, ...]
    clouds: tuple[Cloud, ...]
    levels: tuple[Level, ...]
    summary: str
    points: tuple[Point, ...] = ()


def plan_layer_picture(
    figures: Sequence[TensorFigure], value: Callable[[TensorFigure], float], what: str
) -> Picture | None:
    """Plans a picture with one bar per layer (the mean of its tensors) and one dot per tensor.

    Tensors outside of the layers stand in a last column. Returns None without figures.

    Args:
        figures: From the weights check.
        value: Which figure, a share of 1.
        what: What it is, for the picture's description.
    """
    if not figures:
        return None
    columns = _columns(figures, value)
    top, y_ticks = _linear_axis(max(max(values) for _, values in columns))
    step = _PLOT_WIDTH / len(columns)
    bars, dots = [], []
    for index, (label, values) in enumerate(columns):
        mean = math.fsum(values) / len(values)
        height = _PLOT_HEIGHT * mean / top
        name = "outside of the layers" if label == _OTHER else f"layer {label}"
        text = f"{name}: {describe_small_share(mean)} on average"
        left = FRAME.left + step * (index + 0.15)
        bars.append(Bar(left, FRAME.top + _PLOT_HEIGHT - height, step * 0.7, height, text))
        center = FRAME.left + step * (index + 0.5)
        dots += [(center, _PLOT_HEIGHT * (1 - item / top)) for item in values]
    highest = max(bars, key=lambda bar: bar.height)
    return Picture(
        x_ticks=tuple(
            Tick(FRAME.left + step * (index + 0.5), columns[index][0])
            for index in range(0, len(columns), math.ceil(len(columns) / _MAX_X_TICKS))
        ),
        y_ticks=y_ticks,
        x_title="layer",
        bars=tuple(bars),
        clouds=(_cloud(dots, "tensor"),),
        levels=(),
        summary=f"{what} {len(columns)} columns; highest: {highest.text}",
    )


def plan_token_picture(check: BehaviourCheck) -> Picture | None:
    """Plans KL per token on a logarithmic scale: the artefact below, the bare base above.

    Tokens run from left to right in the order of the text. A KL of zero lies on the axis.
    Returns None without tokens.
    """
    own, base = check.kl_per_token, check.base_kl_per_token
    positive = [value for value in (*own, *base) if value > 0]
    if not own:
        return None
    low, high = find_decades(positive)
    scale = _PLOT_HEIGHT / (high - low)

    def height(value: float) -> float:
        exponent = math.log10(value) if value > 0 else low
        return _PLOT_HEIGHT - (min(max(exponent, low), high) - low) * scale

    step = _PLOT_WIDTH / len(own)
    clouds = tuple(
        _cloud(
            [(FRAME.left + step * (i + 0.5), height(value)) for i, value in enumerate(values)],
            style,
        )
        for values, style in ((base, "base"), (own, "own"))
    )
    means = tuple(
        Level(FRAME.top + height(mean), f"mean {describe_number(mean)}")
        for mean in (check.base_kl_mean, check.kl_mean)
    )
    every = math.ceil((high - low) / 8)
    return Picture(
        x_ticks=tuple(
            Tick(FRAME.left + step * index, str(index))
            for index in range(0, len(own) + 1, _round_step(len(own) / 6))
        ),
        y_ticks=tuple(
            Tick(FRAME.top + height(10.0**exponent), describe_power(exponent))
            for exponent in range(low, high + 1, every)
        ),
        x_title="token of the prompt set",
        bars=(),
        clouds=clouds,
        levels=means,
        summary=(
            f"KL of {len(own)} tokens: this release {describe_number(check.kl_mean)} nats on "
            f"average, the base without the adapter {describe_number(check.base_kl_mean)} nats"
        ),
    )


def _columns(
    figures: Sequence[TensorFigure], value: Callable[[TensorFigure], float]
) -> list[tuple[str, list[float]]]:
    """Returns (label, values) per column: one per layer, or several layers where there are many."""
    by_layer: dict[int, list[float]] = {}
    other: list[float] = []
    for figure in figures:
        place = other if figure.layer is None else by_layer.setdefault(figure.layer, [])
        place.append(max(0.0, value(figure)))
    layers = sorted(by_layer)
    width = math.ceil(len(layers) / _MAX_COLUMNS) or 1
    groups = [layers[start : start + width] for start in range(0, len(layers), width)]
    columns = [
        (
            str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}",
            [item for layer in group for item in by_layer[layer]],
        )
        for group in groups
    ]
    return [*columns, (_OTHER, other)] if other else columns


def _linear_axis(highest: float) -> tuple[float, tuple[Tick, ...]]:
    """Returns the top of the axis and its ticks at round numbers, in per cent."""
    if highest <= 0:
        return 1.0, (Tick(FRAME.top + _PLOT_HEIGHT, "0 %"),)
    step = round_up(highest / 4)
    count = math.ceil(highest / step - 1e-9)
    ticks = tuple(
        Tick(FRAME.top + _PLOT_HEIGHT * (1 - index / count), f"{index * step * 100:.6g} %")
        for index in range(count + 1)
    )
    return step * count, ticks


def round_up(value: float) -> float:
    """Returns the next of 1, 2, 2.5 and 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= value * 0.999)


def _round_step(value: float) -> int:
    return max(1, math.ceil(round_up(value)))


def find_decades(positive: Sequence[float]) -> tuple[int, int]:
    """Returns the exponents of ten that a logarithmic axis begins and ends with."""
    if not positive:
        return -8, 0
    low = max(_LOWEST_EXPONENT, math.floor(math.log10(min(positive))))
    high = math.ceil(math.log10(max(positive)))
    return min(low, high - 2), max(high, low + 2)


def describe_power(exponent: int) -> str:
    """Returns a power of ten as an axis names it."""
    if exponent < -3:
        return describe_number(10.0**exponent).removeprefix("1.0·")
    return f"{10.0**exponent:g}"


def _cloud(dots: Sequence[tuple[float, float]], style: str) -> Cloud:
    """Draws dots given as (pixels from the left of the page, pixels below the top of the plot)."""
    kept = dots[:: max(1, math.ceil(len(dots) / _MAX_DOTS))]
    return Cloud("".join(f"M{x:.1f} {FRAME.top + y:.1f}h0" for x, y in kept), style)
