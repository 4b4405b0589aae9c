"""The report of a sweep or benchmark: its cells' scores as rows, tables over subjects, and curves. Pure.

A cell counts with the step it published: the chosen one, else the last that was scored. Means go over seeds first, then
over subjects, each with the same weight.
"""

from collections.abc import Mapping, Sequence

from booth.contract.attempts import StoredFile
from booth.contract.evaluation import Report, ReportRow, ReportTable
from booth.contract.groups import CellRecord, GroupSettings
from booth.contract.scores import Score
from booth.contract.states import JobState
from booth_service.errors import ScoreError
from booth_service.evaluation import paper
from booth_service.evaluation.intervals import Interval, bootstrap, over_subjects
from booth_service.evaluation.metrics import DEFINITIONS
from booth_service.evaluation.plot import Curve, Panel, Point
from booth_service.evaluation.table import NAMES, Figure, figures_of

INTERVAL_SEED = 0
MAX_PICTURES = 3_000  # of the page: the paper's 30 subjects, 25 prompts, 4 pictures of each

Whole = Mapping[tuple[str, int], Score]
"""Scores with their pictures, by job and step."""


def report_of(
    settings: GroupSettings,
    cells: Sequence[CellRecord],
    whole: Whole,
    photos: Mapping[str, list[StoredFile]],
    more: Mapping[str, str] | None = None,
) -> Report:
    """Everything that is known of the group's cells. `more` are further settings to show."""
    rows = rows_of(cells, whole)
    finals = final_rows(cells)
    varied = {name for cell in cells for name in cell.labels.values}
    tables = [
        *paper.beside(settings.kind, varied),
        over_all(finals),
        differences(finals, settings.baseline),
        by_subject(finals),
    ]
    shown = {"kind": settings.kind, "baseline": settings.baseline or "none", "cells": str(len(cells)), **(more or {})}
    return Report(
        title=f"{settings.kind.capitalize()} {settings.name}",
        rows=rows,
        photos=dict(photos),
        definitions=DEFINITIONS,
        settings=shown,
        warnings=warnings_of(cells),
        tables=[table for table in tables if table is not None],
    )


def final_step(cell: CellRecord) -> int | None:
    """The step that a cell counts with; None where it has no score."""
    steps = [score.step for score in cell.scores]
    return cell.selected_step if cell.selected_step in steps else max(steps, default=None)


def rows_of(cells: Sequence[CellRecord], whole: Whole) -> list[ReportRow]:
    """All scores of all cells in their order; those of `whole` with pictures, so many that a page bears them."""
    share = max(1, MAX_PICTURES // max(1, len(whole)))
    return [
        _row(cell, _with_pictures(score, whole.get((cell.job_id, score.step)), share))
        for cell in cells
        for score in cell.scores
    ]


def final_rows(cells: Sequence[CellRecord]) -> list[ReportRow]:
    """One score of each cell that has any: that of the step it counts with."""
    return [_row(cell, score) for cell in cells for score in cell.scores if score.step == final_step(cell)]


def shown_scores(cells: Sequence[CellRecord]) -> list[tuple[str, int, str]]:
    """Job, step and key of the scores whose pictures are shown: each cell's final one, and a subject's first floor."""
    chosen: list[tuple[str, int, str]] = []
    with_floor: set[str] = set()
    for cell in cells:
        for score, key in zip(cell.scores, cell.score_keys, strict=True):
            is_floor = score.step == 0 and cell.labels.subject not in with_floor
            if is_floor:
                with_floor.add(cell.labels.subject)
            if is_floor or score.step == final_step(cell):
                chosen.append((cell.job_id, score.step, key))
    return chosen


def differences(rows: Sequence[ReportRow], baseline: str | None) -> ReportTable | None:
    """Every other arm minus the baseline, pair by pair; None where there is nothing to compare."""
    arms = [arm for arm in dict.fromkeys(row.arm for row in rows) if arm != baseline]
    figures = figures_of(rows)
    if baseline is None or not arms or baseline not in {row.arm for row in rows}:
        return None
    lines = [
        [arm, *(_interval_text(paired(rows, arm, baseline, figure)) for figure in figures.values())] for arm in arms
    ]
    return ReportTable(
        title=f"Differences to {baseline}",
        head=["Arm", *(NAMES.get(name, name) for name in figures)],
        rows=lines,
        note="Paired by subject and seed; brackets hold 95 % bootstrap intervals over subjects. One that excludes 0 is "
        "a difference that other subjects of the kind would show too.",
    )


def paired(rows: Sequence[ReportRow], arm: str, baseline: str, figure: Figure) -> Interval | None:
    """arm - baseline over the subjects and seeds that both have; None where they share none."""
    of_arm, of_baseline = (
        {(row.subject, row.seed): value for row in rows if row.arm == each and (value := figure(row.score)) is not None}
        for each in (arm, baseline)
    )
    pairs: dict[str, list[float]] = {}
    for subject, seed in of_arm.keys() & of_baseline.keys():
        pairs.setdefault(subject, []).append(of_arm[subject, seed] - of_baseline[subject, seed])
    return bootstrap(over_subjects(pairs), seed=INTERVAL_SEED) if pairs else None


def over_all(rows: Sequence[ReportRow]) -> ReportTable | None:
    """One line for each arm, means over all subjects with their intervals, below the photos among themselves; None
    without rows."""
    figures = figures_of(rows)
    ceilings: dict[str, Figure] = {
        "dino": lambda score: score.ceiling_dino,
        "clip_i": lambda score: score.ceiling_clip_i,
    }
    photos = ["Real photos", *(_mean_text(rows, ceilings.get(name, lambda score: None)) for name in figures)]
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows):
        of_arm = [row for row in rows if row.arm == arm]
        lines.append([arm, *(_interval_text(_interval(of_arm, figure), "") for figure in figures.values())])
    count = len({row.subject for row in rows})
    head = ["Arm", *(NAMES.get(name, name) for name in figures)]
    title = f"Means over {count} subject{'' if count == 1 else 's'}"
    note = "Brackets hold 95 % bootstrap intervals over subjects."
    return ReportTable(title=title, head=head, rows=[photos, *lines], note=note) if lines else None


def by_subject(rows: Sequence[ReportRow]) -> ReportTable | None:
    """One line for each subject and arm, means over seeds; None without rows."""
    figures = figures_of(rows)
    groups: dict[tuple[str, str], list[ReportRow]] = {}
    for row in rows:
        groups.setdefault((row.subject, row.arm), []).append(row)
    lines = []
    for (subject, arm), found in groups.items():
        steps = ", ".join(str(step) for step in sorted({row.score.step for row in found}))
        lines.append([subject, arm, steps, *(_mean_text(found, figure) for figure in figures.values())])
    head = ["Subject", "Arm", "Step", *(NAMES.get(name, name) for name in figures)]
    return ReportTable(title="By subject", head=head, rows=lines) if lines else None


def warnings_of(cells: Sequence[CellRecord]) -> list[str]:
    """Cells that are missing in the figures, with the reason."""
    said = []
    for cell in cells:
        name = f"{cell.labels.subject}, {cell.labels.arm}" + (f", seed {cell.labels.seed}" if cell.labels.seed else "")
        if cell.status is not JobState.SUCCEEDED:
            why = f": {cell.error.message} {cell.error.detail}".rstrip() if cell.error else ""
            said.append(f"{name}: {cell.status.value}{why} ({cell.job_id})")
        elif not cell.scores:
            said.append(f"{name}: no score ({cell.job_id})")
    return said


def panels(cells: Sequence[CellRecord]) -> list[Panel]:
    """The curves of a group's cells."""
    return panels_of(rows_of(cells, {}))


def panels_of(rows: Sequence[ReportRow]) -> list[Panel]:
    """A panel for each figure: its mean over subjects by step, a curve for each arm that has several steps."""
    arms = [arm for arm in dict.fromkeys(row.arm for row in rows) if len(_steps(rows, arm)) > 1]
    made = []
    for name, figure in figures_of(rows).items():
        curves = [Curve(arm, points) for arm in arms if (points := _points(rows, arm, figure))]
        if curves:
            made.append(Panel(NAMES.get(name, name), curves))
    return made


def _points(rows: Sequence[ReportRow], arm: str, figure: Figure) -> list[Point]:
    points = []
    for step in _steps(rows, arm):
        of_step = [row for row in rows if row.arm == arm and row.score.step == step]
        if (found := _interval(of_step, figure)) is not None:
            points.append(Point(step, found.mean, found.low, found.high))
    return points


def _steps(rows: Sequence[ReportRow], arm: str) -> list[int]:
    return sorted({row.score.step for row in rows if row.arm == arm})


def _interval(rows: Sequence[ReportRow], figure: Figure) -> Interval | None:
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        if (value := figure(row.score)) is not None:
            by_subject.setdefault(row.subject, []).append(value)
    try:
        return bootstrap(over_subjects(by_subject), seed=INTERVAL_SEED) if by_subject else None
    except ScoreError:
        return None  # a figure that is not finite is no point of a curve


def _row(cell: CellRecord, score: Score) -> ReportRow:
    labels = cell.labels
    return ReportRow(subject=labels.subject, arm=labels.arm, seed=labels.seed, labels=labels.values, score=score)


def _with_pictures(score: Score, whole: Score | None, share: int) -> Score:
    if whole is None:
        return score
    shown = {"pictures": whole.pictures[:share], "class_pictures": whole.class_pictures[:share]}
    return score.model_copy(update={"cases": whole.cases, **shown})


def _mean_text(rows: Sequence[ReportRow], figure: Figure) -> str:
    found = _interval(rows, figure)
    return "-" if found is None else f"{found.mean:.3f}"


def _interval_text(found: Interval | None, sign: str = "+") -> str:
    if found is None:
        return "-"
    interval = "" if found.low is None else f" [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"
    return f"{found.mean:{sign}.3f}{interval}"
