"""The signs of the paper's main ablations on two of tinyworld's subjects, at half the steps of make reproduce."""

from dataclasses import replace
from pathlib import Path

from claim_arms import ARMS, NO_PRIOR, PRIOR, SMALL_BUDGETS, WRONG_NOUN
from claims import figures
from one_machine import OneMachine
from reproduce import finished_cells, rows_of
from world import SUBJECTS

import booth
from booth.contract.evaluation import ReportRow

SMALL, STEPS, CLASS_IMAGES = SMALL_BUDGETS[-1], 300, 32
ARMS_HERE = [
    replace(ARMS[PRIOR], points=[0, STEPS], dials={"steps": STEPS, "num_class_images": CLASS_IMAGES}),
    replace(ARMS[NO_PRIOR], points=[0, SMALL, STEPS], dials={**ARMS[NO_PRIOR].dials, "steps": STEPS}),
    replace(ARMS[WRONG_NOUN], points=[SMALL], dials={**ARMS[WRONG_NOUN].dials, "steps": SMALL}),
]


def row(folder: Path) -> str:
    """Train, score and compare; a sign that is not the paper's fails."""
    machine = OneMachine(folder / "data")
    machine.start()
    try:
        with booth.Client(machine.base_url, machine.api_key) as client:
            cells = finished_cells(client, ARMS_HERE, SUBJECTS[:2], [0])
            rows = [each for cell in cells for each in rows_of(cell)]
    finally:
        machine.stop()
    rises = {arm: mean(rows, arm, STEPS, "pres") - mean(rows, arm, 0, "pres") for arm in (PRIOR, NO_PRIOR)}
    gains = {arm: mean(rows, arm, STEPS, "dino") - mean(rows, arm, 0, "dino") for arm in (PRIOR, NO_PRIOR)}
    noun = mean(rows, NO_PRIOR, SMALL, "dino") - mean(rows, WRONG_NOUN, SMALL, "dino")
    assert rises[NO_PRIOR] >= 0.4, f"without the prior PRES rose by {rises[NO_PRIOR]:.2f} alone"
    assert rises[PRIOR] <= rises[NO_PRIOR] - 0.2, f"PRES rose by {rises[PRIOR]:.2f} with the prior too"
    assert min(gains.values()) >= 0.3, f"the subject was not learned: {gains}"
    assert gains[PRIOR] < gains[NO_PRIOR], f"the prior cost no fidelity: {gains}"
    assert noun > 0, f"at {SMALL} steps the right noun gave {noun:.2f} over a wrong one"
    return (
        f"PRES rose by {rises[NO_PRIOR]:.2f} without the prior and {rises[PRIOR]:.2f} with it, fidelity by "
        f"{gains[NO_PRIOR]:.2f} and {gains[PRIOR]:.2f}; at {SMALL} steps the right noun "
        f"gave {noun:.2f} over a wrong one"
    )


def mean(rows: list[ReportRow], arm: str, step: int, metric: str) -> float:
    values = figures(rows, arm, step, metric)
    assert len(values) == 2, f"{arm}, {step} steps: {metric} of {sorted(values)} alone"
    return sum(values.values()) / len(values)
