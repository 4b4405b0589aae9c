"""The curves of a claim: a panel for each metric, a line for each arm, whiskers for intervals over subjects."""

from collections.abc import Sequence

from claims import SEED, Rows, figures, steps_of

from booth_service.evaluation.intervals import bootstrap
from booth_service.evaluation.plot import Curve, Panel, Point, curves_png

PANELS = {"dino": "subject fidelity", "pres": "PRES", "div": "DIV", "context": "context right"}


def curves(rows: Rows, arms: Sequence[str]) -> bytes | None:
    """A PNG of the metrics over steps, or None where no arm has one."""
    panels = [panel_of(rows, arms, metric, title) for metric, title in PANELS.items()]
    measured = [panel for panel in panels if panel.curves]
    return curves_png(measured) if measured else None


def panel_of(rows: Rows, arms: Sequence[str], metric: str, title: str) -> Panel:
    """The arms that have the metric, each at the steps that have it."""
    lines = [Curve(arm, points_of(rows, arm, metric)) for arm in arms]
    return Panel(title, [line for line in lines if line.points])


def points_of(rows: Rows, arm: str, metric: str) -> list[Point]:
    """Means over subjects by step, with their intervals where there are several subjects."""
    points = []
    for step in steps_of(rows, arm):
        if values := figures(rows, arm, step, metric):
            interval = bootstrap(values, seed=SEED)
            points.append(Point(step, interval.mean, interval.low, interval.high))
    return points
