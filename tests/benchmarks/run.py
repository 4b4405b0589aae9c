"""Booth's figures against their goals: python tests/benchmarks/run.py, or ONLY=B1,C2 for some of them.

One line for each figure: its name, the median of several pairs, the middle half of them, the goal, and whether it is
reached. Exit status 1 where one is short, or where two arms that should train alike do not. Figures are ratios of CPU
time of two things measured in turn, so that a busy or a slow machine changes both alike; the ratio of wall time stands
behind it. ONLY=C3 takes C3-1, C3-2 and C3-3. C4 counts cases, C5 calls; C8 is shares of bytes; C6, C7, C9, F1, W1
and Z1 are ratios of wall time, so that they want a quiet machine, C9 6 GB of memory too; C11 counts, C13 and S1 are
seconds. C7, C11, C13, F1, S1, W1 and Z1 bring a stack or a store of their own.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import activation
import class_images
import delta
import duels
import fetch
import many_models
import publish
import serve_overhead
import startup
import warm_set
from chooser import report_agreement
from duels import Pairs, TurnsBroken, WrongAnswer
from figure import Goal, at_least, at_most, line

NUM_PAIRS = 9


@dataclass(frozen=True)
class Figure:
    """Measured ratios, and what their median must reach; without a goal they are for information."""

    title: str
    measure: Callable[[], Pairs]
    goal: Goal | None


def import_ratios() -> Pairs:
    """CPU time to import the client, over that of the libraries it cannot do without."""
    return Pairs([import_s("booth") / import_s("pydantic, httpx2, PIL.Image") for _ in range(NUM_PAIRS)], [])


def import_s(modules: str) -> float:
    """CPU seconds that a fresh interpreter takes to import them; wall time would measure the neighbours too."""
    program = f"import time; began = time.process_time(); import {modules}; print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


FIGURES = {
    "B1": Figure("import booth, over its libraries", import_ratios, at_most(2.0)),
    "C1": Figure("reference loop over ours, miniature 128 px", duels.reference_over_booth, at_least(1.20)),
    "C1t": Figure("the same, tinyworld 64 px", duels.reference_over_booth_on_tinyworld, at_least(1.20)),
    "C2": Figure("ours in a Ray worker over bare torch", duels.ray_over_bare_torch, at_most(1.10)),
    "C2d": Figure("DeepSpeed stage 0 over bare torch, 1 rank", duels.deepspeed_0_over_bare_torch, None),
    **{
        f"C3-{stage}": Figure(
            f"ours over DeepSpeed's engine, stage {stage}, 2 ranks",
            partial(duels.booth_over_deepspeed, stage),
            at_most(1.05),
        )
        for stage in (1, 2, 3)
    },
}
OTHERS = {
    "C4": report_agreement,
    "C5": class_images.report_calls,
    "C6": class_images.report_pool,
    "C7": publish.report,
    "C8": delta.report,
    "C9": activation.report,
    "C11": many_models.report_batches,
    "C13": many_models.report_flood,
    "C14": serve_overhead.report,
    "F1": fetch.report,
    "S1": startup.report,
    "W1": warm_set.report,
    "Z1": many_models.report_zipf,
}  # they print lines of their own


def main() -> int:
    """Measure and print. Returns 1 where a figure is short of its goal, 2 where ONLY names one that is not there."""
    asked = os.environ.get("ONLY", "").replace(",", " ").split()
    if unknown := [name for name in asked if not named(name)]:
        print(f"There is no figure {', '.join(unknown)}; there are {', '.join([*FIGURES, *OTHERS])}.", file=sys.stderr)
        return 2
    chosen = [figure for name in asked for figure in named(name)] or [*FIGURES, *OTHERS]
    reached = [OTHERS[name](name) if name in OTHERS else report(name, FIGURES[name]) for name in chosen]
    return 0 if all(reached) else 1


def named(name: str) -> list[str]:
    """The figures of this name, or of its family: C3 is C3-1 to C3-3."""
    return [figure for figure in [*FIGURES, *OTHERS] if figure == name or figure.startswith(f"{name}-")]


def report(name: str, figure: Figure) -> bool:
    """One line; True where the goal is reached."""
    try:
        measured = figure.measure()
    except (WrongAnswer, TurnsBroken) as error:
        print(f"{name} ERROR {error}  {figure.title}", flush=True)
        return False
    wall = f" (wall {statistics.median(measured.wall):.2f})" if measured.wall else ""
    print(line(name, measured.cpu, figure.goal, figure.title + wall), flush=True)
    return figure.goal is None or figure.goal.is_reached(statistics.median(measured.cpu))


if __name__ == "__main__":
    sys.exit(main())
