"""Booth's figures against their goals: python tests/benchmarks/run.py, or ONLY=B1,C2 for some of them.

One line for each figure: its name, the median of several runs, the middle half of them, the goal, and whether it is
reached; for a count, how many of how many. Exit status 1 where one is short. Figures are ratios of two things measured
in turn, so that a busy or a slow machine changes both alike.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from chooser import report_agreement

NUM_PAIRS = 9


@dataclass(frozen=True)
class Figure:
    """A measured ratio and what it must reach: at least, or at most, `goal`."""

    title: str
    measure: Callable[[], float]
    goal: float
    at_least: bool
    repeats: int = NUM_PAIRS

    def is_reached(self, value: float) -> bool:
        return value >= self.goal if self.at_least else value <= self.goal


def import_ratio() -> float:
    """CPU time to import the client, over that of the libraries it cannot do without."""
    return import_s("booth") / import_s("pydantic, httpx2, PIL.Image")


def import_s(modules: str) -> float:
    """CPU seconds that a fresh interpreter takes to import them; wall time would measure the neighbours too."""
    program = f"import time; began = time.process_time(); import {modules}; print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


FIGURES = {
    "B1": Figure("import booth, over its libraries", import_ratio, goal=2.0, at_least=False),
}
COUNTS = {"C4": report_agreement}


def main() -> int:
    """Measure and print. Returns 1 where a figure is short of its goal, 2 where ONLY names one that is not there."""
    chosen = [name for name in os.environ.get("ONLY", "").replace(",", " ").split() if name] or [*FIGURES, *COUNTS]
    if unknown := [name for name in chosen if name not in FIGURES and name not in COUNTS]:
        print(f"There is no figure {', '.join(unknown)}; there are {', '.join([*FIGURES, *COUNTS])}.", file=sys.stderr)
        return 2
    reached = [COUNTS[name](name) if name in COUNTS else report(name, FIGURES[name]) for name in chosen]
    return 0 if all(reached) else 1


def report(name: str, figure: Figure) -> bool:
    """One line; True where the goal is reached."""
    low, middle, high = statistics.quantiles([figure.measure() for _ in range(figure.repeats)], n=4)
    is_reached = figure.is_reached(middle)
    goal = f"goal {'>=' if figure.at_least else '<='}{figure.goal:.2f}"
    verdict = "ok" if is_reached else "SHORT"
    print(f"{name} {middle:.2f} ({low:.2f}-{high:.2f}) {goal} {verdict}  {figure.title}", flush=True)
    return is_reached


if __name__ == "__main__":
    sys.exit(main())
