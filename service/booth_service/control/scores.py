"""Scores of a job: for each scored step what the newest attempt found.

Functions take the session of their caller's transaction; who may write is decided there.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from booth.contract import scores as wire
from booth.contract.evaluation import JobScores
from booth.contract.jobs import Params
from booth.contract.scores import Score
from booth_service.control.problems import ProblemError
from booth_service.control.records import Job, StepScore
from booth_service.storage import keys

SCORE_FILE = "score.json"
_FIGURES = {"DINO": "dino", "CLIP-I": "clip_i", "CLIP-T": "clip_t", "PRES": "pres", "DIV": "div"}


def keep(session: Session, job: Job, number: int, scored: list[wire.StepScore]) -> list[wire.StepScore]:
    """The scores of attempt `number` are stored; returns those that are new or were another attempt's.

    A repetition changes nothing; of two of one step the later counts. Raises bad_request for a score that is not of
    this attempt, and then none is stored.
    """
    for each in scored:
        _check(job, number, each)
    latest = {each.score.step: each for each in scored}
    return [each for each in latest.values() if _is_news(session, job, number, each)]


def of_job(session: Session, job: Job) -> list[wire.StepScore]:
    """The job's scores, the earliest step first."""
    rows = session.scalars(select(StepScore).where(StepScore.job_id == job.id).order_by(StepScore.step))
    return [wire.StepScore(score=Score.model_validate(row.score), key=row.key, sha256=row.sha256) for row in rows]


def shown(session: Session, job: Job) -> JobScores:
    """The scores as the job's owner sees them."""
    return JobScores(scores=[each.score for each in of_job(session, job)], selected_step=job.selected_step)


def check_selected(job: Job, step: int) -> None:
    """Raise bad_request where the job cannot have chosen this step."""
    params = Params.model_validate(job.params)
    if params.select_checkpoint != "fidelity" or not 0 < step <= params.steps:
        raise ProblemError("bad_request", f"Step {step} is none that {job.id} can have chosen.")


def sentence(score: Score) -> str:
    """A score for an event."""
    found = {name: getattr(score, field) for name, field in _FIGURES.items()}
    figures = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if value is not None)
    return f"Scores of step {score.step}: {figures}."


def _is_news(session: Session, job: Job, number: int, scored: wire.StepScore) -> bool:
    said = {
        "attempt": number,
        "score": scored.score.model_dump(mode="json"),
        "key": scored.key,
        "sha256": scored.sha256,
    }
    row = session.get(StepScore, (job.id, scored.score.step))
    if row is None:
        session.add(StepScore(job_id=job.id, step=scored.score.step, **said))
        return True
    if all(getattr(row, column) == value for column, value in said.items()):
        return False
    for column, value in said.items():
        setattr(row, column, value)
    return True


def _check(job: Job, number: int, scored: wire.StepScore) -> None:
    score, scoring = scored.score, Params.model_validate(job.params).scoring
    what = f"The score of step {score.step}"
    if scoring is None or score.step not in scoring.steps or score.suite != scoring.suite:
        raise ProblemError("bad_request", f"{what} by {score.suite!r} is none that {job.id} asks for.")
    if score.cases or score.pictures or score.class_pictures:
        raise ProblemError("bad_request", f"{what} brings its pictures, which belong into the object store.")
    if scored.key != keys.score_file(job.tenant_id, job.id, number, score.step, SCORE_FILE):
        raise ProblemError("bad_request", f"{what} names {scored.key}, which is no score of attempt {number}.")
