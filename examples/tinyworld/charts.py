"""Curves over steps beside each other, one panel a metric, one line an arm: drawn with Pillow alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from claims import Rows, figures, steps_of
from PIL import Image, ImageDraw, ImageFont

PANEL_PX, PANEL_HEIGHT_PX, MARGIN_PX, LEGEND_PX, FONT_PX = 300, 230, 38, 26, 13
PANELS = {"dino": "subject fidelity", "pres": "PRES", "div": "DIV", "context": "context right"}
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189))
INK, GRID, PAPER = (40, 40, 40), (222, 222, 222), (255, 255, 255)


@dataclass(frozen=True)
class Axes:
    """Where a panel lies, and what it spans."""

    left: int
    steps: float
    low: float
    high: float

    def at(self, step: float, value: float) -> tuple[float, float]:
        """The pixel of a point."""
        width, height = PANEL_PX - MARGIN_PX - 12, PANEL_HEIGHT_PX - 2 * MARGIN_PX
        share = (value - self.low) / (self.high - self.low)
        return self.left + MARGIN_PX + width * step / self.steps, MARGIN_PX + height * (1 - share)


def curves(rows: Rows, arms: Sequence[str]) -> Image.Image:
    """Means over subjects by step, thin lines for the subjects themselves, and below them which colour is which arm."""
    size = (len(PANELS) * PANEL_PX, PANEL_HEIGHT_PX + LEGEND_PX)
    chart = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(chart), ImageFont.load_default(FONT_PX)
    for number, (metric, title) in enumerate(PANELS.items()):
        lines = {arm: line_of(rows, arm, metric) for arm in arms}
        values = [value for line in lines.values() for _, by_subject in line for value in by_subject.values()]
        last = max((step for line in lines.values() for step, _ in line), default=0)
        axes = Axes(number * PANEL_PX, max(last, 1), min([0.0, *values]), max([1.0, *values]))
        draw_axes(pen, font, axes, title)
        for arm, colour in zip(arms, COLOURS, strict=False):
            draw_line(pen, axes, lines[arm], colour)
    x = MARGIN_PX
    for arm, colour in zip(arms, COLOURS, strict=False):
        pen.line((x, PANEL_HEIGHT_PX + 8, x + 24, PANEL_HEIGHT_PX + 8), fill=colour, width=3)
        pen.text((x + 30, PANEL_HEIGHT_PX), arm, fill=INK, font=font)
        x += 60 + round(font.getlength(arm))
    return chart


def line_of(rows: Rows, arm: str, metric: str) -> list[tuple[int, dict[str, float]]]:
    """The arm's values by subject at each step that has any."""
    points = [(step, figures(rows, arm, step, metric)) for step in steps_of(rows, arm)]
    return [(step, values) for step, values in points if values]


def draw_axes(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, axes: Axes, title: str
) -> None:
    pen.text((axes.left + MARGIN_PX, 10), title, fill=INK, font=font)
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        pen.line([axes.at(0, value), axes.at(axes.steps, value)], fill=GRID)
        pen.text(axes.at(0, value), f"{value:g} ", fill=INK, font=font, anchor="rm")
    for share in (0.0, 0.5, 1.0):
        x, y = axes.at(share * axes.steps, axes.low)
        pen.text((x, y + 6), f"{share * axes.steps:.0f}", fill=INK, font=font, anchor="mt")


def draw_line(
    pen: ImageDraw.ImageDraw, axes: Axes, line: Sequence[tuple[int, dict[str, float]]], colour: tuple[int, int, int]
) -> None:
    pale = tuple(round(255 - (255 - part) * 0.3) for part in colour)
    for subject in sorted({name for _, values in line for name in values}):
        pen.line([axes.at(step, values[subject]) for step, values in line if subject in values], fill=pale)
    means = [axes.at(step, sum(values.values()) / len(values)) for step, values in line]
    pen.line(means, fill=colour, width=3)
    for x, y in means:
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
