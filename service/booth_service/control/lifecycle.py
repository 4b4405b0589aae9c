"""The life of a job after admission: every transition is one transaction, guarded by state and fence.

An event is written in the same transaction as what it tells. Functions take the session of that transaction.
"""

from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from booth.contract.attempts import Beat, Found
from booth.contract.jobs import TRAINING_PHASE, JobFailure, Params, Progress
from booth.contract.scores import StepScore
from booth.contract.serving import ModelRef
from booth.contract.states import Desired, FailureReason, JobState
from booth_service.control import attempts, policy, samples, scores
from booth_service.control.problems import ProblemError, conflict, not_found
from booth_service.control.records import Attempt, AttemptState, Job, JobEvent, Model
from booth_service.settings import Settings

PROGRESS_EVENT_INTERVAL = timedelta(seconds=2)
_ORDER = list(JobState)


def owned_job(session: Session, tenant_id: str, job_id: str, *, lock: bool = False) -> Job:
    """The tenant's job; not_found for anything else."""
    job = session.get(Job, job_id, with_for_update=lock or None)
    if job is None or job.tenant_id != tenant_id:
        raise not_found("job", job_id)
    return job


def live_attempt(session: Session, job_id: str, number: int, fence: int | None = None) -> tuple[Job, Attempt]:
    """The job, locked, and its attempt, where that one still has a say; conflict where it is over or was overtaken."""
    job, attempt = _locked_attempt(session, job_id, number, fence)
    if attempt.state is not AttemptState.ACTIVE:
        raise conflict(f"Attempt {number} of {job_id} is over.")
    return job, attempt


def record(session: Session, job: Job, now: datetime, kind: str, message: str, *, with_progress: bool = False) -> None:
    """Append an event to the job's history."""
    job.last_event += 1
    progress = job.progress if with_progress else None
    session.add(
        JobEvent(
            job_id=job.id, seq=job.last_event, at=now, kind=kind, message=message, status=job.state, progress=progress
        )
    )


def say(session: Session, job_id: str, now: datetime, status_detail: str) -> None:
    """The owner reads why nothing moves; a repetition changes nothing."""
    job = session.get_one(Job, job_id, with_for_update=True)
    if not job.state.is_final and job.status_detail != status_detail:
        job.status_detail = status_detail
        record(session, job, now, "note", status_detail)


def request_cancel(session: Session, tenant_id: str, job_id: str, now: datetime) -> Job:
    """The job is cancelled, at once where nothing of it runs, else as soon as Ray says that it is gone."""
    job = owned_job(session, tenant_id, job_id, lock=True)
    if job.state.is_final:
        raise conflict(f"Job {job_id} is {job.state.value} already.", "There is nothing left to cancel.")
    if job.desired is Desired.RUN:
        job.desired = Desired.CANCEL
        job.status_detail = "Cancelling."
        record(session, job, now, "note", "The owner asked to cancel.")
        if job.state is JobState.QUEUED and _active(session, job) is None:
            _finish(session, job, now, JobState.CANCELLED, "Cancelled before it ran.")
    return job


def claim(session: Session, job_id: str, now: datetime) -> Attempt | None:
    """A new attempt, with a fence above all before; None where the job no longer waits for one."""
    job = session.get_one(Job, job_id, with_for_update=True)
    not_closed = select(Attempt).where(Attempt.job_id == job_id, Attempt.state != AttemptState.CLOSED)
    if job.state is not JobState.QUEUED or job.desired is not Desired.RUN or session.scalar(not_closed) is not None:
        return None
    job.attempt += 1
    job.fence += 1
    job.not_before = None
    attempt = Attempt(
        job_id=job.id,
        n=job.attempt,
        fence=job.fence,
        ray_submission_id=f"{job.id}-a{job.attempt}",
        state=AttemptState.ACTIVE,
        created_at=now,
    )
    session.add(attempt)
    job.status_detail = f"Starting attempt {job.attempt}." if job.attempt > 1 else "Starting."
    record(session, job, now, "note", job.status_detail)
    return attempt


def beat(session: Session, job_id: str, number: int, beat: Beat, now: datetime) -> Desired:
    """What the driver says is stored; what the owner wants is returned."""
    job, attempt = live_attempt(session, job_id, number, beat.fence)
    if beat.state.is_final or beat.state is JobState.QUEUED:
        raise ProblemError("bad_request", f"A driver cannot make a job {beat.state.value}.")
    before = Progress.model_validate(job.progress)
    is_forward = _ORDER.index(beat.state) > _ORDER.index(job.state)
    moved = is_forward or (beat.progress.phase, beat.progress.step) != (before.phase, before.step)
    if is_forward:
        job.state = beat.state
    job.started_at = job.started_at or now
    job.progress = beat.progress.model_dump()
    job.checkpoint_key = beat.checkpoint_key or job.checkpoint_key
    _note_times(attempt, job.state, beat.progress, moved, now)
    if is_forward or beat.progress.phase != before.phase:
        attempt.note = None
    attempt.note = beat.note or attempt.note
    if job.desired is Desired.RUN:
        job.status_detail = attempt.note or _sentence(job.state, beat.progress)
    _record_beat(session, job, attempt, beat, now, is_forward=is_forward, phase_before=before.phase, moved=moved)
    for step in samples.keep(session, job, number, beat.samples):
        record(session, job, now, "samples", f"Sample pictures of step {step}.")
    _keep_scores(session, job, number, beat.scores, beat.selected_step, now)
    if attempt.stop_reason is not None:
        return Desired.CANCEL
    has_enough = job.desired is Desired.RUN and job.state is JobState.TRAINING and job.selected_step is not None
    return Desired.FINISH if has_enough else job.desired


def found(session: Session, job_id: str, number: int, found: Found, now: datetime) -> None:
    """What was found of the attempt's checkpoints beside its gang is stored."""
    job, _ = live_attempt(session, job_id, number, found.fence)
    _keep_scores(session, job, number, found.scores, found.selected_step, now)
    if found.note:
        record(session, job, now, "note", found.note)


def end_attempt(
    session: Session, job_id: str, number: int, fence: int, end: policy.End, settings: Settings, now: datetime
) -> None:
    """The attempt is over; its job waits for another, failed or was cancelled. A repetition changes nothing."""
    job, attempt = _locked_attempt(session, job_id, number, fence)
    if attempt.state is not AttemptState.ACTIVE:
        return
    attempt.state = AttemptState.CLOSING
    attempt.ended_at = now
    attempt.reason = reason = attempts.true_reason(job.desired, attempt, end.reason)
    attempt.detail = attempt.detail or end.detail
    is_lost = FailureReason.CLUSTER_LOST
    alike = Attempt.reason == is_lost if reason is is_lost else Attempt.reason != is_lost
    failures = session.scalar(select(func.count()).where(Attempt.job_id == job_id, alike)) or 1
    match policy.outcome(reason, failures, settings):
        case policy.Cancel():
            _finish(session, job, now, JobState.CANCELLED, "Cancelled.")
        case policy.Fail():
            failure = JobFailure(reason=reason, message=reason.message, remedy=reason.remedy, detail=attempt.detail)
            job.error = failure.model_dump(mode="json")
            _finish(session, job, now, JobState.FAILED, reason.message)
        case policy.Retry(delay_s=delay_s):
            job.state = JobState.QUEUED
            job.not_before = now + timedelta(seconds=delay_s)
            job.progress = Progress().model_dump()
            job.status_detail = f"Attempt {number} ended: {reason.message} Trying again in {delay_s:g} s."
            record(session, job, now, "state", job.status_detail)


def is_last_try(session: Session, job: Job, attempt: Attempt, settings: Settings) -> bool:
    """Whether the job fails should this attempt, which is not its first, end as any of the earlier did."""
    earlier = session.scalars(select(Attempt.reason).where(Attempt.job_id == job.id, Attempt.n < attempt.n)).all()
    return policy.is_last_try(earlier, settings)


def succeed(
    session: Session, job_id: str, number: int, fence: int, published: ModelRef, total_bytes: int, now: datetime
) -> Model:
    """The model exists and its job succeeded, in the one moment of this transaction."""
    job, attempt = live_attempt(session, job_id, number, fence)
    if job.desired is Desired.CANCEL or attempt.stop_reason is not None:
        raise conflict(f"Job {job_id} was asked to stop before its model was published.")
    model = Model(
        id=published.model_id,
        tenant_id=job.tenant_id,
        job_id=job.id,
        base_model_id=job.base_model_id,
        name=job.name,
        params=job.params,
        manifest_key=published.manifest_key,
        manifest_sha256=published.manifest_sha256,
        bytes=total_bytes,
        created_at=now,
    )
    session.add(model)
    attempt.state = AttemptState.CLOSING
    attempt.ended_at = now
    job.model_id = model.id
    steps = Params.model_validate(job.params).steps
    job.progress = {**job.progress, "phase": "succeeded", "step": steps, "total_steps": steps, "eta_s": None}
    _finish(session, job, now, JobState.SUCCEEDED, "The model is ready.")
    return model


def _keep_scores(
    session: Session, job: Job, number: int, found: list[StepScore], selected_step: int | None, now: datetime
) -> None:
    for scored in scores.keep(session, job, number, found):
        record(session, job, now, "scores", scores.sentence(scored.score))
    if selected_step is not None:
        scores.check_selected(job, selected_step)
        job.selected_step = selected_step


def _locked_attempt(session: Session, job_id: str, number: int, fence: int | None) -> tuple[Job, Attempt]:
    job = session.get(Job, job_id, with_for_update=True)
    attempt = session.get(Attempt, (job_id, number))
    if job is None or attempt is None:
        raise not_found("attempt", f"{job_id}-a{number}")
    fence = attempt.fence if fence is None else fence
    if not fence == attempt.fence == job.fence:
        raise conflict(f"Attempt {number} of {job_id} was overtaken: its fence {fence} is not the current {job.fence}.")
    return job, attempt


def _active(session: Session, job: Job) -> Attempt | None:
    return session.scalar(select(Attempt).where(Attempt.job_id == job.id, Attempt.state == AttemptState.ACTIVE))


def _finish(session: Session, job: Job, now: datetime, state: JobState, status_detail: str) -> None:
    assert not job.state.is_final, "a final state is never left"
    job.state = state
    job.status_detail = status_detail
    job.finished_at = now
    record(session, job, now, "state", status_detail, with_progress=True)


def _note_times(attempt: Attempt, state: JobState, progress: Progress, moved: bool, now: datetime) -> None:
    if attempt.last_beat_at is None or moved:
        attempt.last_progress_at = now
    attempt.last_beat_at = now
    if state is JobState.TRAINING and attempt.training_at is None:
        attempt.training_at = now
    if progress.phase == TRAINING_PHASE and attempt.training_from_step is None:
        attempt.training_from_step = progress.step
    stepped = (
        progress.phase == TRAINING_PHASE
        and attempt.training_from_step is not None
        and progress.step > attempt.training_from_step
    )
    if (
        attempt.first_step_at is None
        and attempt.training_at is not None
        and (stepped or state is not JobState.TRAINING)
    ):
        attempt.first_step_at = now


def _record_beat(
    session: Session,
    job: Job,
    attempt: Attempt,
    beat: Beat,
    now: datetime,
    *,
    is_forward: bool,
    phase_before: str,
    moved: bool,
) -> None:
    due = attempt.last_progress_event_at is None or now - attempt.last_progress_event_at >= PROGRESS_EVENT_INTERVAL
    if is_forward:
        record(session, job, now, "state", _sentence(job.state, beat.progress), with_progress=True)
    elif beat.progress.phase != phase_before or (moved and due):
        record(session, job, now, "progress", _sentence(job.state, beat.progress), with_progress=True)
        attempt.last_progress_event_at = now
    if beat.note:
        record(session, job, now, "note", beat.note)
    if beat.warning:
        job.warnings = [*job.warnings, beat.warning]
        record(session, job, now, "warning", beat.warning)


def _sentence(state: JobState, progress: Progress) -> str:
    doing = (
        state.value.capitalize() if progress.phase == state.value else f"{state.value.capitalize()}: {progress.phase}"
    )
    return f"{doing}, {progress.step} of {progress.total_steps}." if progress.total_steps else f"{doing}."
