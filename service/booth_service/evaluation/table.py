"""A report's rows as the lines of its table: means over subjects with intervals, beside ceiling and floor. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from booth.contract.evaluation import ReportRow
from booth.contract.scores import Score
from booth_service.evaluation.intervals import Interval, bootstrap, over_subjects

INTERVAL_SEED = 0
Figure = Callable[[Score], float | None]


@dataclass(frozen=True)
class Line:
    """A line: an arm (at a step, where the arm has several), its figures by name, and what stands beside each of them.

    `ceilings` are the photos among themselves, `floors` the frozen base, both over the same subjects; beside the base
    itself there is no floor.
    """

    arm: str
    step: int
    rows: list[ReportRow]
    figures: dict[str, Interval]
    ceilings: dict[str, float]
    floors: dict[str, float]
    warnings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def memorised(self) -> int:
        """Pictures too like a training photo."""
        return sum(len(row.score.like_a_photo) for row in self.rows)


NAMES = {
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "pres": "PRES",
    "div": "DIV",
    "unseen_dino": "DINO, unseen",
}
"""The paper's figures by field, as a table heads them."""

IS_LOWER_BETTER = {"pres"}


def figures_of(rows: Sequence[ReportRow]) -> dict[str, Figure]:
    """The figures that any row has, by name: the paper's, then the attribute heads'."""
    found: dict[str, Figure] = {name: lambda score, name=name: getattr(score, name) for name in NAMES}  # type: ignore[misc]
    heads = dict.fromkeys(head for row in rows for head in row.score.accuracies)
    found |= {f"{head} right": lambda score, head=head: score.accuracies.get(head) for head in heads}  # type: ignore[misc]
    return {name: figure for name, figure in found.items() if any(figure(row.score) is not None for row in rows)}


def lines(rows: Sequence[ReportRow]) -> list[Line]:
    """A line for each arm and step, in the order in which they first come."""
    figures = figures_of(rows)
    groups: dict[tuple[str, int], list[ReportRow]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.score.step), []).append(row)
    return [_line(arm, step, of_arm, figures, rows) for (arm, step), of_arm in groups.items()]


def floor_of(rows: Sequence[ReportRow], subject: str) -> Score | None:
    """The frozen base's score of a subject, where the report has one."""
    return next((row.score for row in rows if row.subject == subject and row.score.step == 0), None)


def _line(
    arm: str, step: int, rows: list[ReportRow], figures: dict[str, Figure], everything: Sequence[ReportRow]
) -> Line:
    subjects = dict.fromkeys(row.subject for row in rows)
    known = (floor_of(everything, subject) for subject in subjects)
    own = [row.score for row in rows]
    floors = [floor for floor in known if floor is not None and not any(floor is score for score in own)]
    ceilings = {
        name: _mean(rows, figure)
        for name, figure in {
            "dino": lambda score: score.ceiling_dino,
            "clip_i": lambda score: score.ceiling_clip_i,
            "unseen_dino": lambda score: score.ceiling_dino,
        }.items()
    }
    return Line(
        arm=arm,
        step=step,
        rows=rows,
        figures={name: found for name, figure in figures.items() if (found := _interval(rows, figure)) is not None},
        ceilings={name: ceiling for name, ceiling in ceilings.items() if ceiling is not None},
        floors={name: floor for name, figure in figures.items() if (floor := _mean_of(floors, figure)) is not None},
        warnings={_of(row): row.score.warnings for row in rows if row.score.warnings},
    )


def _interval(rows: Sequence[ReportRow], figure: Figure) -> Interval | None:
    """Seeds first, then subjects; those that have no such figure are left out."""
    by_subject: dict[str, list[float]] = {}
    for row in rows:
        if (value := figure(row.score)) is not None:
            by_subject.setdefault(row.subject, []).append(value)
    return bootstrap(over_subjects(by_subject), seed=INTERVAL_SEED) if by_subject else None


def _mean(rows: Sequence[ReportRow], figure: Figure) -> float | None:
    found = _interval(rows, figure)
    return None if found is None else found.mean


def _mean_of(scores: Sequence[Score], figure: Figure) -> float | None:
    values = [value for score in scores if (value := figure(score)) is not None]
    return sum(values) / len(values) if values else None


def _of(row: ReportRow) -> str:
    return f"{row.subject}, seed {row.seed}" if row.seed else row.subject
