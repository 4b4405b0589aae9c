"""One line for one figure: name, median, middle half, goal, verdict, title."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What a figure must reach: at least, or at most, `value`."""

    value: float
    is_least: bool

    def is_reached(self, value: float) -> bool:
        return value >= self.value if self.is_least else value <= self.value


def at_least(value: float) -> Goal:
    """The more, the better."""
    return Goal(value, is_least=True)


def at_most(value: float) -> Goal:
    """The less, the better."""
    return Goal(value, is_least=False)


def line(name: str, values: Sequence[float], goal: Goal | None, title: str) -> str:
    """`C1 1.31 (1.27-1.36) goal >=1.20 ok  title`: the median and the middle half; without a goal, "no goal"."""
    return line_of(name, statistics.median(values), values, goal, title)


def line_of(name: str, value: float, values: Sequence[float], goal: Goal | None, title: str) -> str:
    """The line of a figure that is not the median of its parts; `values` give the spread."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (value,) * 3
    verdict = "no goal"
    if goal:
        sign = ">=" if goal.is_least else "<="
        verdict = f"goal {sign}{goal.value:.2f} {'ok' if goal.is_reached(value) else 'SHORT'}"
    return f"{name} {value:.2f} ({low:.2f}-{high:.2f}) {verdict}  {title}"
