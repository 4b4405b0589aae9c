"""The life of a generation after admission: every transition is one transaction, guarded by state and fence.

Functions take the session of that transaction. As `lifecycle` does for jobs, without a history of events.
"""

from datetime import datetime, timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from booth.contract.attempts import Beat
from booth.contract.bulk import DRAWING_PHASE
from booth.contract.generations import GenerationState, words
from booth.contract.jobs import JobFailure
from booth.contract.states import Desired, FailureReason
from booth_service.control import policy
from booth_service.control.problems import conflict, not_found
from booth_service.control.records import AttemptState, Generation, GenerationAttempt, Model
from booth_service.settings import Settings


def owned(session: Session, tenant_id: str, generation_id: str, *, lock: bool = False) -> Generation:
    """The tenant's generation; not_found for anything else, deleted ones included."""
    row = session.get(Generation, generation_id, with_for_update=lock or None)
    if row is None or row.tenant_id != tenant_id or row.deleted_at is not None or not row.is_stored:
        raise not_found("generation", generation_id)
    return row


def live_attempt(
    session: Session, generation_id: str, number: int, fence: int | None = None
) -> tuple[Generation, GenerationAttempt]:
    """The generation, locked, and its attempt, where that one still has a say; conflict where it has not."""
    generation, attempt = locked_attempt(session, generation_id, number, fence)
    if attempt.state is not AttemptState.ACTIVE:
        raise conflict(f"Attempt {number} of {generation_id} is over.")
    return generation, attempt


def waiting(session: Session) -> list[Generation]:
    """Queued generations of which no attempt is open, oldest first."""
    has_open = exists().where(
        GenerationAttempt.generation_id == Generation.id, GenerationAttempt.state != AttemptState.CLOSED
    )
    is_waiting = (Generation.state == GenerationState.QUEUED, Generation.desired == Desired.RUN, Generation.is_stored)
    return list(session.scalars(select(Generation).where(*is_waiting, ~has_open).order_by(Generation.id)))


def is_model_gone(session: Session, generation: Generation) -> bool:
    """Whether it is of a model that was deleted."""
    if generation.model_id is None:
        return False
    model = session.get(Model, generation.model_id)
    return model is None or model.deleted_at is not None


def say(session: Session, generation_id: str, status_detail: str) -> None:
    """The owner reads why nothing moves."""
    row = session.get_one(Generation, generation_id, with_for_update=True)
    if not row.state.is_final:
        row.status_detail = status_detail


def request_cancel(session: Session, tenant_id: str, generation_id: str, now: datetime) -> Generation:
    """It is cancelled, at once where nothing of it runs, else as soon as Ray says that it is gone."""
    generation = owned(session, tenant_id, generation_id, lock=True)
    if generation.state.is_final:
        title = f"Generation {generation_id} is {generation.state.value} already."
        raise conflict(title, "There is nothing left to cancel; DELETE removes its pictures.")
    _stop_wanting(session, generation, now)
    return generation


def delete(session: Session, tenant_id: str, generation_id: str, now: datetime) -> None:
    """It is gone for its owner; what runs of it ends, and its objects and row follow."""
    generation = owned(session, tenant_id, generation_id, lock=True)
    if not generation.state.is_final:
        _stop_wanting(session, generation, now)
    generation.deleted_at = now


def claim(session: Session, generation_id: str, now: datetime) -> GenerationAttempt | None:
    """A new attempt, with a fence above all before; None where the generation no longer waits for one."""
    row = session.get_one(Generation, generation_id, with_for_update=True)
    if row.id not in {each.id for each in waiting(session)}:
        return None
    row.attempt += 1
    row.fence += 1
    row.not_before = None
    row.status_detail = f"Starting attempt {row.attempt}." if row.attempt > 1 else "Starting."
    attempt = GenerationAttempt(
        generation_id=row.id,
        n=row.attempt,
        fence=row.fence,
        ray_submission_id=f"{row.id}-a{row.attempt}",
        state=AttemptState.ACTIVE,
        from_step=row.done,
        created_at=now,
    )
    session.add(attempt)
    return attempt


def beat(session: Session, generation_id: str, number: int, beat: Beat, now: datetime) -> Desired:
    """What the driver says is stored; what the owner wants is returned. `beat.state` means nothing here."""
    generation, attempt = live_attempt(session, generation_id, number, beat.fence)
    progress = beat.progress
    if generation.state is GenerationState.QUEUED:
        generation.state = GenerationState.RUNNING
        generation.started_at = generation.started_at or now
    if (progress.phase, progress.step) != (attempt.phase, attempt.step):
        attempt.last_progress_at = now
    attempt.last_beat_at = now
    attempt.phase, attempt.step = progress.phase, progress.step
    if progress.phase == DRAWING_PHASE:
        generation.done = progress.step
        if progress.step > attempt.from_step:
            attempt.first_at = attempt.first_at or now
    generation.images_per_second, generation.eta_s = progress.images_per_second, progress.eta_s
    if generation.desired is Desired.RUN:
        generation.status_detail = f"{progress.phase.capitalize()}: {progress.step} of {generation.total} pictures."
    return Desired.CANCEL if attempt.stop_reason is not None else generation.desired


def end_attempt(
    session: Session, generation_id: str, number: int, fence: int, end: policy.End, settings: Settings, now: datetime
) -> None:
    """The attempt is over; its generation waits for another, failed or was cancelled. A repetition changes nothing."""
    generation, attempt = locked_attempt(session, generation_id, number, fence)
    if attempt.state is not AttemptState.ACTIVE:
        return
    attempt.state = AttemptState.CLOSING
    attempt.ended_at = now
    attempt.reason = reason = _true_reason(generation, attempt, end.reason)
    attempt.detail = attempt.detail or end.detail
    match policy.outcome(reason, _failures(session, attempt, reason), settings):
        case policy.Cancel():
            _finish(generation, now, GenerationState.CANCELLED, "Cancelled.")
        case policy.Fail():
            fail(generation, now, reason, attempt.detail)
        case policy.Retry(delay_s=delay_s):
            generation.state = GenerationState.QUEUED
            generation.not_before = now + timedelta(seconds=delay_s)
            said = words(reason)[0]
            generation.status_detail = f"Attempt {number} ended: {said} Trying again in {delay_s:g} s."
            generation.images_per_second = generation.eta_s = None


def fail(generation: Generation, now: datetime, reason: FailureReason, detail: str = "") -> None:
    """It is over; the pictures that were drawn stay."""
    message, remedy = words(reason)
    generation.error = JobFailure(reason=reason, message=message, remedy=remedy, detail=detail).model_dump(mode="json")
    _finish(generation, now, GenerationState.FAILED, message)


def succeed(
    session: Session, generation_id: str, number: int, fence: int, manifest: tuple[str, str], now: datetime
) -> None:
    """Every picture is there, and its manifest, key and SHA-256, is known. A repetition changes nothing."""
    generation, attempt = locked_attempt(session, generation_id, number, fence)
    if generation.manifest_sha256 == manifest[1]:
        return  # the first answer was lost on its way
    if attempt.state is not AttemptState.ACTIVE:
        raise conflict(f"Attempt {number} of {generation_id} is over.")
    if generation.desired is Desired.CANCEL or attempt.stop_reason is not None:
        raise conflict(f"Generation {generation_id} was asked to stop before its last picture.")
    attempt.state = AttemptState.CLOSING
    attempt.ended_at = now
    generation.manifest_key, generation.manifest_sha256 = manifest
    generation.done = generation.total
    _finish(generation, now, GenerationState.SUCCEEDED, "All pictures are there.")


def note_submitted(session: Session, attempt: GenerationAttempt, now: datetime) -> None:
    """Ray has the attempt's job."""
    session.get_one(GenerationAttempt, (attempt.generation_id, attempt.n)).submitted_at = now


def note_stop(session: Session, attempt: GenerationAttempt, reason: FailureReason, detail: str) -> None:
    """The attempt will end for this reason; its driver's own story comes second."""
    row = session.get_one(GenerationAttempt, (attempt.generation_id, attempt.n), with_for_update=True)
    if row.state is AttemptState.ACTIVE and row.stop_reason is None:
        row.stop_reason, row.detail = reason, detail


def close_attempt(session: Session, attempt: GenerationAttempt, now: datetime) -> None:
    """Nothing of the attempt runs any more."""
    row = session.get_one(GenerationAttempt, (attempt.generation_id, attempt.n), with_for_update=True)
    row.state = AttemptState.CLOSED
    row.closed_at = now


def locked_attempt(
    session: Session, generation_id: str, number: int, fence: int | None
) -> tuple[Generation, GenerationAttempt]:
    """Both rows, the generation's locked; conflict where the attempt was overtaken."""
    generation = session.get(Generation, generation_id, with_for_update=True)
    attempt = session.get(GenerationAttempt, (generation_id, number))
    if generation is None or attempt is None:
        raise not_found("attempt", f"{generation_id}-a{number}")
    fence = attempt.fence if fence is None else fence
    if not fence == attempt.fence == generation.fence:
        title = f"Attempt {number} of {generation_id} was overtaken: its fence {fence} is not the current one."
        raise conflict(title)
    return generation, attempt


def _failures(session: Session, attempt: GenerationAttempt, reason: FailureReason) -> int:
    """Attempts that ended alike, with their cluster or otherwise, this one included, since one added pictures.

    What does is never given up, however long it takes: drawn pictures stay, so that comes to an end.
    """
    of_it = GenerationAttempt.generation_id == attempt.generation_id
    drew = select(func.max(GenerationAttempt.n)).where(of_it, GenerationAttempt.first_at.is_not(None))
    is_lost = FailureReason.CLUSTER_LOST
    alike = GenerationAttempt.reason == is_lost if reason is is_lost else GenerationAttempt.reason != is_lost
    since = GenerationAttempt.n > (session.scalar(drew) or 0)
    return session.scalar(select(func.count()).where(of_it, alike, since)) or 1


def _true_reason(generation: Generation, attempt: GenerationAttempt, said: FailureReason) -> FailureReason:
    """Why we stopped it outweighs what the driver makes of being stopped."""
    if attempt.stop_reason is not None:
        return attempt.stop_reason
    if generation.desired is Desired.CANCEL:
        return FailureReason.CANCELLED
    return FailureReason.INTERNAL if said in (FailureReason.CANCELLED, FailureReason.SUPERSEDED) else said


def _stop_wanting(session: Session, generation: Generation, now: datetime) -> None:
    generation.desired = Desired.CANCEL
    generation.status_detail = "Cancelling."
    is_open = select(GenerationAttempt).where(
        GenerationAttempt.generation_id == generation.id, GenerationAttempt.state == AttemptState.ACTIVE
    )
    if session.scalar(is_open) is None:
        _finish(generation, now, GenerationState.CANCELLED, "Cancelled before it ran.")


def _finish(generation: Generation, now: datetime, state: GenerationState, status_detail: str) -> None:
    assert not generation.state.is_final, "a final state is never left"
    generation.state = state
    generation.status_detail = status_detail
    generation.finished_at = now
    generation.images_per_second = generation.eta_s = None
