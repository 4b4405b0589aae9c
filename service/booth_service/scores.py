"""Scores of a run's weights: what is still to be scored, and two hands that do it, here or on every free device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from booth.contract.attempts import Brief
from booth.contract.ip_adapter import EMBEDS_PATH
from booth.contract.scores import StepScore
from booth_service import actor_pool
from booth_service.errors import ServiceError
from booth_service.picture_count import counting
from booth_service.scorer import OnPictures, Scorer, ScoreTask, ScoreWork, wanted
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore


@dataclass(frozen=True)
class ScoredStep:
    """What became of a task: a score, or why there is none."""

    step: int
    score: StepScore | None
    problem: str = ""


Score = Callable[[ScoreWork, Sequence[ScoreTask], OnPictures], Iterator[ScoredStep]]
"""Scores tasks, in any order; `score_here`, or `score_by_pool` on a cluster."""


def weights_key(brief: Brief, store: ObjectStore, step: int) -> str | None:
    """What there is of the run after `step` steps: its checkpoint or, where nothing is trained, the photo as read."""
    if brief.params.method == "ip_adapter":
        return keys.model_file(brief.tenant_id, brief.job_id, brief.attempt, EMBEDS_PATH)
    return checkpoint_key(brief, store, step)


def checkpoint_key(brief: Brief, store: ObjectStore, step: int) -> str | None:
    """The manifest of the checkpoint after `step` steps, of the newest attempt that has one; None where none has."""
    for number in range(brief.attempt, 0, -1):
        key = keys.checkpoint_file(brief.tenant_id, brief.job_id, number, step, "manifest.json")
        if store.size(key) is not None:
            return key
    return None


def tasks_of(brief: Brief, store: ObjectStore) -> tuple[list[ScoreTask], list[int]]:
    """Every step that is to be scored and has no score that stands, and those whose checkpoint is not there."""
    assert brief.params.scoring is not None
    standing = {each.score.step for each in brief.scores}
    tasks, missing = [], []
    for step in brief.params.scoring.steps:
        if step in standing:
            continue
        key = weights_key(brief, store, step) if step else None
        if step and key is None:
            missing.append(step)
        else:
            tasks.append(ScoreTask(step, key))
    return tasks, missing


def pictures_of(work: ScoreWork) -> int:
    """Pictures that one step's score takes."""
    of_cases, of_class = wanted(work.scoring, is_base=False)
    return len(of_cases) + len(of_class)


def score_here(work: ScoreWork, tasks: Sequence[ScoreTask], on_pictures: OnPictures) -> Iterator[ScoredStep]:
    """The tasks scored in this process, one after the other; one that fails does not end the others."""
    score = _scorer(work, on_pictures)
    for task in tasks:
        yield score(task)


def score_by_pool(work: ScoreWork, tasks: Sequence[ScoreTask], on_pictures: OnPictures) -> Iterator[ScoredStep]:
    """The tasks scored on every free device. Raises what Ray says where an actor dies again and again.

    `on_pictures` is called in this process, a few times a second at most.
    """
    with counting(on_pictures) as count:
        yield from actor_pool.by_actor_pool(
            partial(_scorer, work, count),
            tasks,
            resources=actor_pool.one_device(use_gpu=work.use_gpu),
            most=actor_pool.most_actors(use_gpu=work.use_gpu),
            what="scoring",
        )


def _scorer(work: ScoreWork, on_pictures: OnPictures) -> Callable[[ScoreTask], ScoredStep]:
    scorer = Scorer(work)

    def scored(task: ScoreTask) -> ScoredStep:
        try:
            return ScoredStep(task.step, scorer.score(task, on_pictures))
        except ServiceError as error:
            return ScoredStep(task.step, None, f"{type(error).__name__}: {error}")

    return scored
