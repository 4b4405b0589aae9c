"""The scores of an attempt: made, told as they come, and, where the job chooses, one step chosen by them.

Nothing in here costs a job its model: what cannot be scored is a warning.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from booth.contract.attempts import Brief
from booth.contract.evaluation import REPORT_PHASE
from booth.contract.jobs import Progress
from booth.contract.scores import StepScore
from booth.contract.states import JobState
from booth_service.beats import Line, Pulse
from booth_service.errors import AttemptEnded, ServiceError
from booth_service.evaluation.choice import select_step
from booth_service.scorer import ScoreTask, ScoreWork
from booth_service.scores import Score, pictures_of, tasks_of
from booth_service.storage.s3 import ObjectStore

SCORING_PHASE = "scoring"


@dataclass(frozen=True)
class ScoreDesk:
    """What scoring needs of an attempt. `score` does it: here, or on a cluster by an actor pool. `report` stores a
    report on all scores; None where another one tells of them (a group's)."""

    work: ScoreWork
    line: Line
    score: Score
    report: Callable[[Brief, ObjectStore, Sequence[StepScore]], None] | None = None


def score_run(desk: ScoreDesk) -> list[StepScore]:
    """All scores that the job has, those of earlier attempts too, in order of their steps; none where it asks for none.

    Raises AttemptEnded where its owner wants no more.
    """
    brief = desk.work.brief
    if brief.params.scoring is None:
        return []
    found = {each.score.step: each for each in brief.scores}
    with Pulse(desk.line, brief.fence, JobState.EVALUATING, Progress(phase=SCORING_PHASE)) as pulse:
        tasks, missing = tasks_of(brief, desk.work.store)
        if tasks and brief.is_last_try:
            why = "this was the job's last try, which scoring might have cost"
            _warn(pulse, f"{_not_scored([task.step for task in tasks])}: {why}")
            tasks = []
        if missing:
            _warn(pulse, f"{_not_scored(missing)}: no checkpoint is there")
        if tasks:
            for each in _Stage(desk, pulse, tasks).scores():
                found[each.score.step] = each
        scored = [found[step] for step in sorted(found)]
        if scored and desk.report is not None:
            _report(desk.report, desk, scored, pulse)
    return scored


def choose_step(desk: ScoreDesk, scored: Sequence[StepScore]) -> int:
    """The step to publish, told with its reason: the best trade-off, or the end where nothing could be scored."""
    brief, scoring = desk.work.brief, desk.work.scoring
    choice = select_step([each.score for each in scored], len(scoring.cases) * scoring.num_images)
    step = brief.params.steps if choice.step is None else choice.step
    progress = Progress(phase="choosing the checkpoint", step=step, total_steps=brief.params.steps)
    with Pulse(desk.line, brief.fence, JobState.EVALUATING, progress) as pulse:
        if choice.step is None:
            _warn(pulse, f"the end of the run is published: {choice.why}")
        print(f"step {step} is published: {choice.why}", flush=True)
        pulse.say(progress, note=f"step {step} is published: {choice.why}", selected_step=step)
    return step


def _report(
    report: Callable[[Brief, ObjectStore, Sequence[StepScore]], None],
    desk: ScoreDesk,
    scored: Sequence[StepScore],
    pulse: Pulse,
) -> None:
    pulse.say(Progress(phase=REPORT_PHASE))
    try:
        report(desk.work.brief, desk.work.store, scored)
    except (ServiceError, OSError, ValueError) as error:
        _warn(pulse, f"there is no report on the scores: {error}")


class _Stage:
    """Tasks on their way to scores, and what is told of them."""

    def __init__(self, desk: ScoreDesk, pulse: Pulse, tasks: Sequence[ScoreTask]) -> None:
        self._desk, self._pulse, self._tasks = desk, pulse, tasks
        self._each = pictures_of(desk.work)
        self._total, self._drawn = self._each * len(tasks), 0
        self._began = time.monotonic()

    def scores(self) -> list[StepScore]:
        """Every score that could be made."""
        steps = [task.step for task in self._tasks]
        self._say(
            f"scoring {_listed(steps)}: {self._total} pictures of "
            f"{self._desk.work.scoring.num_inference_steps} denoising steps, beside what training takes"
        )
        found, problems = [], defaultdict(list)
        left = set(steps)
        try:
            for scored in self._desk.score(self._desk.work, self._tasks, self._on_pictures):
                self._pulse.check()
                left.discard(scored.step)
                if scored.score is None:
                    problems[scored.problem].append(scored.step)
                    continue
                found.append(scored.score)
                for warning in scored.score.score.warnings:
                    _warn(self._pulse, f"step {scored.step}: {warning}")
                self._pulse.say(self._progress(), scores=[scored.score])
        except AttemptEnded:
            raise
        except ServiceError as error:
            problems[str(error)] += sorted(left)
        for problem, at in problems.items():
            _warn(self._pulse, f"{_not_scored(sorted(at))}: {problem}")
        return found

    def _on_pictures(self, count: int) -> None:
        is_first = self._drawn == 0
        self._drawn += count
        progress = self._progress()
        if is_first and progress.eta_s is not None:
            self._say(f"scoring takes about {_minutes(progress.eta_s)} at the pace of its first {count} pictures")
        self._pulse.say(progress)

    def _progress(self) -> Progress:
        pace = self._drawn / (time.monotonic() - self._began)
        return Progress(
            phase=SCORING_PHASE,
            step=min(self._drawn, self._total),  # an actor that died has drawn some of them twice
            total_steps=self._total,
            images_per_second=pace or None,
            eta_s=max(0, self._total - self._drawn) / pace if pace else None,
        )

    def _say(self, note: str) -> None:
        print(note, flush=True)
        self._pulse.say(self._progress(), note=note)


def _warn(pulse: Pulse, warning: str) -> None:
    print(f"warning: {warning}", flush=True)
    pulse.say(Progress(phase=SCORING_PHASE), warning=warning)


def _not_scored(steps: Sequence[int]) -> str:
    return f"{_listed(steps)} {'was' if len(steps) == 1 else 'were'} not scored"


def _listed(steps: Sequence[int]) -> str:
    return f"{'step' if len(steps) == 1 else 'steps'} {', '.join(map(str, steps))}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
