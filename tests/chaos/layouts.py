"""Published files are casts of the fp32 masters bit for bit: 1, 2 and 4 ranks, ZeRO 0 to 3, fp32 and bf16, EMA or not.

`make test` has a part of these; here are all of them, each in float16 and bfloat16.
"""

from pathlib import Path

from loop import Case, assert_published_as_cast, layout, run
from tiny_base import write_tiny_base
from tiny_job import PARAMS


def row(folder: Path) -> str:
    """Train two steps, publish, compare."""
    base = write_tiny_base(folder / "tiny")
    cases = [
        Case(
            f"{ranks} ranks at stage {stage}, {precision}, EMA {ema_decay}",
            base,
            layout(ranks, stage),
            PARAMS.model_copy(update={"steps": 2, "precision": precision, "ema_decay": ema_decay}),
            publishes=True,
        )
        for ranks in (1, 2, 4)
        for stage in ((0,) if ranks == 1 else range(4))
        for precision in ("fp32", "bf16")
        for ema_decay in (0.0, 0.5)
    ]
    outcomes = run(cases, folder)
    for name, outcome in outcomes.items():
        try:
            assert_published_as_cast(outcome)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    return f"{len(outcomes)} runs, each published in two formats"
