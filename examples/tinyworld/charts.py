"""The curves of a claim: a panel for each metric, a line for each arm, whiskers for intervals over subjects."""

from claim_arms import ARMS_OF_CLAIMS, shown_name
from claims import SEED, Rows, figures, steps_of

from booth_service.evaluation.intervals import bootstrap
from booth_service.evaluation.plot import Curve, Panel, Point, curves_png

PANELS = {"dino": "subject fidelity", "pres": "PRES", "div": "DIV", "context": "context right"}


def curves(rows: Rows, claim: str) -> bytes | None:
    """A PNG of the metrics over steps, or None where none was measured at several steps."""
    panels = [panel_of(rows, claim, metric, title) for metric, title in PANELS.items()]
    measured = [panel for panel in panels if any(len(curve.points) > 1 for curve in panel.curves)]
    return curves_png(measured) if measured else None


def panel_of(rows: Rows, claim: str, metric: str, title: str) -> Panel:
    """The claim's arms that have the metric, each at the steps that have it."""
    lines = [Curve(shown_name(claim, arm), points_of(rows, arm, metric)) for arm in ARMS_OF_CLAIMS[claim]]
    return Panel(title, [line for line in lines if line.points])


def points_of(rows: Rows, arm: str, metric: str) -> list[Point]:
    """Means over subjects by step, with their intervals where there are several subjects."""
    points = []
    for step in steps_of(rows, arm):
        if values := figures(rows, arm, step, metric):
            interval = bootstrap(values, seed=SEED)
            points.append(Point(step, interval.mean, interval.low, interval.high))
    return points
