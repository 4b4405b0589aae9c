"""The life of a run (generation, evaluation, group) after admission: every transition is one transaction, guarded by
state and fence.

Functions take the session of that transaction. As `lifecycle` does for jobs, without a history of events.
"""

from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from booth.contract import evaluation, generations
from booth.contract.attempts import Beat
from booth.contract.evaluation import ENCODING_PHASE, REPORT_PHASE
from booth.contract.jobs import JobFailure
from booth.contract.states import Desired, FailureReason, RunState
from booth_service.control import attempts, policy
from booth_service.control.problems import conflict, not_found
from booth_service.control.records import AttemptState, Evaluation, Generation, Model, Run, RunAttempt
from booth_service.settings import Settings

AnyRun = TypeVar("AnyRun", bound=Run)


def owned(session: Session, kind: type[AnyRun], tenant_id: str, run_id: str, *, lock: bool = False) -> AnyRun:
    """The tenant's run of this kind; not_found for anything else, deleted ones included."""
    row = session.get(kind, run_id, with_for_update=lock or None)
    if row is None or row.tenant_id != tenant_id or row.deleted_at is not None or not row.is_stored:
        raise not_found(str(kind.__mapper_args__["polymorphic_identity"]), run_id)
    return row


def live_attempt(session: Session, run_id: str, number: int, fence: int | None = None) -> tuple[Run, RunAttempt]:
    """The run, locked, and its attempt, where that one still has a say; conflict where it has not."""
    run, attempt = locked_attempt(session, run_id, number, fence)
    if attempt.state is not AttemptState.ACTIVE:
        raise conflict(f"Attempt {number} of {run_id} is over.")
    return run, attempt


def waiting(session: Session) -> list[Run]:
    """Queued runs of which no attempt is open, oldest first."""
    has_open = exists().where(RunAttempt.run_id == Run.id, RunAttempt.state != AttemptState.CLOSED)
    is_waiting = (Run.state == RunState.QUEUED, Run.desired == Desired.RUN, Run.is_stored)
    return list(session.scalars(select(Run).where(*is_waiting, ~has_open).order_by(Run.id)))


def is_model_gone(session: Session, run: Run) -> bool:
    """Whether it is of a model that was deleted, or compares with one."""
    compared = run.settings["spec"]["compare"] if isinstance(run, Evaluation) else []
    models = [session.get(Model, each) for each in (run.model_id, *compared) if each is not None]
    return any(model is None or model.deleted_at is not None for model in models)


def say(session: Session, run_id: str, status_detail: str) -> None:
    """The owner reads why nothing moves."""
    row = session.get_one(Run, run_id, with_for_update=True)
    if not row.state.is_final:
        row.status_detail = status_detail


def request_cancel(session: Session, kind: type[AnyRun], tenant_id: str, run_id: str, now: datetime) -> AnyRun:
    """It is cancelled, at once where nothing of it runs, else as soon as Ray says that it is gone."""
    run = owned(session, kind, tenant_id, run_id, lock=True)
    if run.state.is_final:
        title = f"{run.kind.capitalize()} {run_id} is {run.state.value} already."
        raise conflict(title, "There is nothing left to cancel; DELETE removes what is stored of it.")
    _stop_wanting(session, run, now)
    return run


def delete(session: Session, kind: type[Run], tenant_id: str, run_id: str, now: datetime) -> None:
    """It is gone for its owner; what runs of it ends, and its objects and row follow."""
    run = owned(session, kind, tenant_id, run_id, lock=True)
    if not run.state.is_final:
        _stop_wanting(session, run, now)
    run.deleted_at = now


def claim(session: Session, run_id: str, now: datetime) -> RunAttempt | None:
    """A new attempt, with a fence above all before; None where the run no longer waits for one."""
    row = session.get_one(Run, run_id, with_for_update=True)
    if row.id not in {each.id for each in waiting(session)}:
        return None
    row.attempt += 1
    row.fence += 1
    row.not_before = None
    row.status_detail = f"Starting attempt {row.attempt}." if row.attempt > 1 else "Starting."
    attempt = RunAttempt(
        run_id=row.id,
        n=row.attempt,
        fence=row.fence,
        ray_submission_id=f"{row.id}-a{row.attempt}",
        state=AttemptState.ACTIVE,
        from_step=row.done,
        created_at=now,
    )
    session.add(attempt)
    return attempt


def beat(session: Session, run_id: str, number: int, beat: Beat, now: datetime) -> Desired:
    """What the driver says is stored; what the owner wants is returned. `beat.state` means nothing here."""
    run, attempt = live_attempt(session, run_id, number, beat.fence)
    progress = beat.progress
    if run.state is RunState.QUEUED:
        run.state = RunState.RUNNING
        run.started_at = run.started_at or now
    if (progress.phase, progress.step) != (attempt.phase, attempt.step):
        attempt.last_progress_at = now
    goes_on = progress.phase == attempt.phase and progress.step > attempt.step
    attempt.last_beat_at = now
    attempt.phase, attempt.step = progress.phase, progress.step
    if progress.phase == run.counting_phase:
        run.done = progress.step
        if progress.step > attempt.from_step:
            attempt.first_at = attempt.first_at or now
    if progress.phase == ENCODING_PHASE:
        run.done = run.total  # all are drawn; the beat that would have said so may have been the last one's
        attempt.first_at = attempt.first_at or (now if goes_on else None)
    run.images_per_second, run.eta_s = progress.images_per_second, progress.eta_s
    if run.desired is Desired.RUN:
        counted = f"{progress.phase.capitalize()}: {progress.step} of {run.total} {run.counts}."
        run.status_detail = "Making the report." if progress.phase == REPORT_PHASE else counted
    return Desired.CANCEL if attempt.stop_reason is not None else run.desired


def end_attempt(
    session: Session, run_id: str, number: int, fence: int, end: policy.End, settings: Settings, now: datetime
) -> None:
    """The attempt is over; its run waits for another, failed or was cancelled. A repetition changes nothing."""
    run, attempt = locked_attempt(session, run_id, number, fence)
    if attempt.state is not AttemptState.ACTIVE:
        return
    attempt.state = AttemptState.CLOSING
    attempt.ended_at = now
    attempt.reason = reason = attempts.true_reason(run.desired, attempt, end.reason)
    attempt.detail = attempt.detail or end.detail
    match policy.outcome(reason, _failures(session, attempt, reason), settings):
        case policy.Cancel():
            _finish(run, now, RunState.CANCELLED, "Cancelled.")
        case policy.Fail():
            fail(run, now, reason, attempt.detail)
        case policy.Retry(delay_s=delay_s):
            run.state = RunState.QUEUED
            run.not_before = now + timedelta(seconds=delay_s)
            said = words(run, reason)[0]
            run.status_detail = f"Attempt {number} ended: {said} Trying again in {delay_s:g} s."
            run.images_per_second = run.eta_s = None


def fail(run: Run, now: datetime, reason: FailureReason, detail: str = "") -> None:
    """It is over; what was done stays."""
    message, remedy = words(run, reason)
    run.error = JobFailure(reason=reason, message=message, remedy=remedy, detail=detail).model_dump(mode="json")
    _finish(run, now, RunState.FAILED, message)


def succeed(session: Session, run_id: str, number: int, fence: int, manifest: tuple[str, str], now: datetime) -> None:
    """Every picture or cell is there, and its manifest, key and SHA-256, is known. A repetition changes nothing."""
    run, attempt = locked_attempt(session, run_id, number, fence)
    if run.manifest_sha256 == manifest[1]:
        return  # the first answer was lost on its way
    if attempt.state is not AttemptState.ACTIVE:
        raise conflict(f"Attempt {number} of {run_id} is over.")
    if run.desired is Desired.CANCEL or attempt.stop_reason is not None:
        raise conflict(f"{run.kind.capitalize()} {run_id} was asked to stop before its end.")
    attempt.state = AttemptState.CLOSING
    attempt.ended_at = now
    run.manifest_key, run.manifest_sha256 = manifest
    run.done = run.total
    _finish(run, now, RunState.SUCCEEDED, f"All {run.counts} are there.")


def note_first(session: Session, attempt: RunAttempt, moved_at: datetime) -> RunAttempt:
    """Work was done in this attempt, before any of it was finished."""
    row = session.get_one(RunAttempt, (attempt.run_id, attempt.n), with_for_update=True)
    row.first_at = row.first_at or moved_at
    return row


def locked_attempt(session: Session, run_id: str, number: int, fence: int | None) -> tuple[Run, RunAttempt]:
    """Both rows, the run's locked; conflict where the attempt was overtaken."""
    run = session.get(Run, run_id, with_for_update=True)
    attempt = session.get(RunAttempt, (run_id, number))
    if run is None or attempt is None:
        raise not_found("attempt", f"{run_id}-a{number}")
    fence = attempt.fence if fence is None else fence
    if not fence == attempt.fence == run.fence:
        title = f"Attempt {number} of {run_id} was overtaken: its fence {fence} is not the current one."
        raise conflict(title)
    return run, attempt


def _failures(session: Session, attempt: RunAttempt, reason: FailureReason) -> int:
    """Attempts that ended alike, with their cluster or otherwise, this one included, since one added to what is done.

    What does is never given up, however long it takes: what is done stays, so that comes to an end.
    """
    of_it = RunAttempt.run_id == attempt.run_id
    drew = select(func.max(RunAttempt.n)).where(of_it, RunAttempt.first_at.is_not(None))
    is_lost = FailureReason.CLUSTER_LOST
    alike = RunAttempt.reason == is_lost if reason is is_lost else RunAttempt.reason != is_lost
    since = RunAttempt.n > (session.scalar(drew) or 0)
    return session.scalar(select(func.count()).where(of_it, alike, since)) or 1


def _stop_wanting(session: Session, run: Run, now: datetime) -> None:
    run.desired = Desired.CANCEL
    run.status_detail = "Cancelling."
    is_open = select(RunAttempt).where(RunAttempt.run_id == run.id, RunAttempt.state == AttemptState.ACTIVE)
    if session.scalar(is_open) is None:
        _finish(run, now, RunState.CANCELLED, "Cancelled before it ran.")


def _finish(run: Run, now: datetime, state: RunState, status_detail: str) -> None:
    assert not run.state.is_final, "a final state is never left"
    run.state = state
    run.status_detail = status_detail
    run.finished_at = now
    run.images_per_second = run.eta_s = None


def words(run: Run, reason: FailureReason) -> tuple[str, str]:
    """What happened to a run, and what its owner can do."""
    if isinstance(run, Evaluation):
        return evaluation.words(reason)
    return generations.words(reason) if isinstance(run, Generation) else (reason.message, reason.remedy)
