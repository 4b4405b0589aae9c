"""The cells of a group as owners and its driver see them, and how its driver takes them."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from booth.contract.groups import CellPage, CellRecord, CellRef, ClaimedCell, GroupBrief, GroupSettings
from booth.contract.jobs import WAITING_PHASE, JobFailure
from booth.contract.scores import Score
from booth.contract.states import Desired
from booth_service.control import lifecycle, run_lifecycle
from booth_service.control.groups import labels_of, place_of
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict, not_found
from booth_service.control.records import Attempt, AttemptState, Group, Job, RunAttempt, StepScore
from booth_service.control.views import stored_files


def brief(plane: Plane, session: Session, group: Group, attempt: RunAttempt) -> GroupBrief:
    """All that the attempt's driver needs to know."""
    stopped = select(Attempt.job_id).join(Job, Job.id == Attempt.job_id)
    stopped = stopped.where(Job.group_id == group.id, Attempt.state == AttemptState.ACTIVE)
    unwanted = set(session.scalars(stopped.where(Attempt.stop_reason.is_not(None) | (Job.desired == Desired.CANCEL))))
    return GroupBrief(
        group_id=group.id,
        tenant_id=group.tenant_id,
        attempt=attempt.n,
        fence=attempt.fence,
        settings=GroupSettings.model_validate(group.settings),
        cells=[
            CellRef(job_id=job.id, labels=labels_of(job), status=job.state, is_unwanted=job.id in unwanted)
            for job in cells_of(session, group.id)
        ],
        serving_gpus=plane.settings.serving_gpus,
    )


def claim(session: Session, group_id: str, number: int, job_id: str, now: datetime) -> ClaimedCell:
    """The job's next attempt, to be run by this attempt of its group; or why there is none now.

    A repetition, of a claim whose answer was lost, gives the same attempt. Raises conflict where the group's own
    attempt is over or was asked to stop.
    """
    group, attempt = run_lifecycle.live_attempt(session, group_id, number)
    if group.desired is Desired.CANCEL or attempt.stop_reason is not None:
        raise conflict(f"Group {group_id} was asked to stop.")
    job = session.get(Job, job_id, with_for_update=True)
    if job is None or job.group_id != group_id:
        raise not_found("cell", job_id)
    held = session.get(Attempt, (job_id, job.attempt))
    if held is None or held.state is AttemptState.CLOSED:
        if job.not_before is not None and job.not_before > now:
            return ClaimedCell(status=job.state)
        held = lifecycle.claim(session, job_id, now)
        if held is not None:
            held.ray_submission_id, held.submitted_at = attempt.ray_submission_id, now
    if held is None or held.state is not AttemptState.ACTIVE or held.ray_submission_id != attempt.ray_submission_id:
        return ClaimedCell(status=job.state)
    return ClaimedCell(attempt=held.n, fence=held.fence, status=job.state)


def page(session: Session, group_id: str, *, with_keys: bool) -> CellPage:
    """All cells in their order, with their scores; where the whole scores lie is for drivers alone."""
    jobs = cells_of(session, group_id)
    rows = session.scalars(
        select(StepScore).join(Job, Job.id == StepScore.job_id).where(Job.group_id == group_id).order_by(StepScore.step)
    )
    scores: dict[str, list[StepScore]] = {}
    for row in rows:
        scores.setdefault(row.job_id, []).append(row)
    return CellPage(cells=[_record(job, scores.get(job.id, []), with_keys) for job in jobs])


def cells_of(session: Session, group_id: str) -> list[Job]:
    """The group's jobs in the order of its cells."""
    return sorted(session.scalars(select(Job).where(Job.group_id == group_id)), key=place_of)


def moved_at(session: Session, ray_submission_id: str) -> datetime | None:
    """When last a cell of the group's Ray job moved. One that waits for another's class images moves when that does."""
    waits = Job.progress["phase"].as_string() == WAITING_PHASE
    moment = case((waits, Attempt.last_beat_at), else_=Attempt.last_progress_at)
    query = select(func.max(moment)).select_from(Attempt).join(Job, Job.id == Attempt.job_id)
    last: datetime | None = session.scalar(query.where(Attempt.ray_submission_id == ray_submission_id))
    return last


def _record(job: Job, scores: Iterable[StepScore], with_keys: bool) -> CellRecord:
    rows = list(scores)
    return CellRecord(
        job_id=job.id,
        model_id=job.model_id,
        labels=labels_of(job),
        status=job.state,
        status_detail=job.status_detail,
        error=None if job.error is None else JobFailure.model_validate(job.error),
        selected_step=job.selected_step,
        scores=[Score.model_validate(row.score) for row in rows],
        score_keys=[row.key for row in rows] if with_keys else [],
        photos=stored_files([row for row in job.photos if not row.get("subject")]) if with_keys else [],
    )
