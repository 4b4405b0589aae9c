"""Curves over steps as one PNG: a panel for each figure, a line for each arm, whiskers for intervals. Pure, by PIL."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 3
WIDTH, HEIGHT = 420, 300  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 34, 34  # its margins
LEGEND_LINE = 20
# Okabe and Ito's palette, which colour-blind readers tell apart; arms beyond it begin anew with other marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
INK, GRID, PAPER = "#222222", "#DDDDDD", "#FFFFFF"


@dataclass(frozen=True)
class Point:
    """A mean at a step, with its interval where there is one."""

    step: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """One arm's points, in order of their steps."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Panel:
    """One figure over steps."""

    title: str
    curves: list[Curve]


@dataclass(frozen=True)
class Axes:
    """Where values lie on the picture: x from `left` to `right` for steps, y from `bottom` up to `top` for values."""

    left: float
    right: float
    top: float
    bottom: float
    steps: tuple[int, int]
    values: tuple[float, float]
    unit: float

    def x(self, step: float) -> float:
        first, last = self.steps
        return self.left + (step - first) / max(1, last - first) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.values
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)


def curves_png(panels: Sequence[Panel]) -> bytes:
    """The picture. Raises ValueError without a panel."""
    if not panels:
        raise ValueError("there is no curve to draw; score several steps")
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    legend = math.ceil(len(names) / columns) * LEGEND_LINE + LEGEND_LINE
    image = Image.new("RGB", (columns * WIDTH, lines * HEIGHT + legend), PAPER)
    draw = ImageDraw.Draw(image)
    for number, panel in enumerate(panels):
        _panel(draw, panel, names, (number % columns) * WIDTH, (number // columns) * HEIGHT)
    for number, name in enumerate(names):
        x, y = (number % columns) * WIDTH + LEFT, lines * HEIGHT + LEGEND_LINE * (number // columns) + LEGEND_LINE // 2
        draw.line([(x, y), (x + 22, y)], fill=colour_of(number), width=3)
        _mark(draw, number, x + 11, y)
        draw.text((x + 30, y), _short(name), fill=INK, font=_font(13), anchor="lm")
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def axes_of(panel: Panel, x0: float = 0, y0: float = 0) -> Axes:
    """Room for all points and their whiskers; round ends above and below."""
    points = [point for curve in panel.curves for point in curve.points]
    steps = [point.step for point in points]
    values = [value for point in points for value in (point.mean, point.low, point.high) if value is not None]
    unit = tick_unit(max(values) - min(values))
    low, high = math.floor(min(values) / unit) * unit, math.ceil(max(values) / unit) * unit
    bounds = (low if low < high else low - unit, high)
    return Axes(x0 + LEFT, x0 + WIDTH - RIGHT, y0 + TOP, y0 + HEIGHT - BOTTOM, (min(steps), max(steps)), bounds, unit)


def tick_unit(spread: float) -> float:
    """1, 2 or 5 times a power of ten, so that four ticks or so span the spread."""
    if spread <= 0:
        return 0.1
    rough = spread / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def colour_of(number: int) -> str:
    """The colour of an arm by its place."""
    return COLOURS[number % len(COLOURS)]


def _panel(draw: ImageDraw.ImageDraw, panel: Panel, names: Sequence[str], x0: float, y0: float) -> None:
    axes = axes_of(panel, x0, y0)
    draw.text((axes.left, y0 + 10), panel.title, fill=INK, font=_font(15))
    low, high = axes.values
    for number in range(round((high - low) / axes.unit) + 1):
        value = low + number * axes.unit
        draw.line([(axes.left, axes.y(value)), (axes.right, axes.y(value))], fill=GRID)
        draw.text((axes.left - 6, axes.y(value)), f"{round(value, 6):g}", fill=INK, font=_font(11), anchor="rm")
    for step in _step_ticks(panel):
        draw.line([(axes.x(step), axes.bottom), (axes.x(step), axes.bottom + 4)], fill=INK)
        draw.text((axes.x(step), axes.bottom + 6), str(step), fill=INK, font=_font(11), anchor="ma")
    for curve in panel.curves:
        _curve(draw, curve, axes, names.index(curve.name))


def _curve(draw: ImageDraw.ImageDraw, curve: Curve, axes: Axes, number: int) -> None:
    colour = colour_of(number)
    for point in curve.points:
        if point.low is not None and point.high is not None:
            x = axes.x(point.step)
            draw.line([(x, axes.y(point.low)), (x, axes.y(point.high))], fill=colour)
    draw.line([(axes.x(point.step), axes.y(point.mean)) for point in curve.points], fill=colour, width=2)
    for point in curve.points:
        _mark(draw, number, axes.x(point.step), axes.y(point.mean))


def _mark(draw: ImageDraw.ImageDraw, number: int, x: float, y: float) -> None:
    box = [(x - 3, y - 3), (x + 3, y + 3)]
    if number // len(COLOURS) % 2:
        draw.rectangle(box, fill=colour_of(number))
    else:
        draw.ellipse(box, fill=colour_of(number))


def _step_ticks(panel: Panel) -> list[int]:
    """The steps that are named below: all where they are few, else a few of them."""
    steps = sorted({point.step for curve in panel.curves for point in curve.points})
    every = math.ceil(len(steps) / 6)
    return steps[::every]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _short(name: str) -> str:
    return name if len(name) <= 48 else name[:45] + "..."
