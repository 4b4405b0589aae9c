"""What must not stay: photos that no job took, idempotency records past their time, objects of deleted models and
runs, and of generations past their time, weights that were being uploaded when their attempt ended, and pictures that
links were given for."""

from datetime import timedelta

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session

from booth_service.control import photos
from booth_service.control.plane import Plane
from booth_service.control.records import (
    Attempt,
    AttemptState,
    Idempotency,
    Job,
    Model,
    Run,
    RunAttempt,
    Sample,
    StepScore,
    Upload,
)
from booth_service.storage import keys

IDEMPOTENCY_LIFE = timedelta(hours=48)
UNSTORED_LIFE = timedelta(hours=1)


def sweep(plane: Plane) -> None:
    """Everything that is due is gone. May be repeated and interrupted at any point."""
    sweep_uploads(plane)
    with plane.database.write() as session:
        session.execute(delete(Idempotency).where(Idempotency.created_at < plane.now() - IDEMPOTENCY_LIFE))
    purge_models(plane)
    purge_runs(plane)
    abort_weights(plane)
    sweep_pictures(plane)


def sweep_uploads(plane: Plane) -> None:
    """Expired uploads are gone, raw and re-encoded, but for photos and masks that a job names. The row goes last."""
    with plane.database.read() as session:
        expired = list(session.scalars(select(Upload).where(Upload.expires_at < plane.now())))
        due = [(upload, _unused(session, upload)) for upload in expired]
    for upload, unused in due:
        plane.store.delete(keys.upload(upload.tenant_id, upload.sha256), *unused)
        with plane.database.write() as session:
            session.execute(
                delete(Upload).where(
                    Upload.tenant_id == upload.tenant_id,
                    Upload.sha256 == upload.sha256,
                    Upload.expires_at == upload.expires_at,
                )
            )


def _unused(session: Session, upload: Upload) -> list[str]:
    """What was made of the upload and no job names."""
    photo, mask = (key(upload.tenant_id, upload.sha256) for key in (keys.photo, keys.mask))
    unused = [key for key in (photo, mask) if not photos.is_in_a_job(session, upload.tenant_id, key)]
    return [keys.class_photo(upload.tenant_id, upload.sha256), *unused] if photo in unused else unused


def purge_models(plane: Plane) -> None:
    """Deleted models have no object left: weights, manifest, checkpoints, samples and scores of their job. Logs stay.

    Their rows go last.
    """
    with plane.database.read() as session:
        due = list(session.scalars(select(Model).where(Model.deleted_at.is_not(None))))
    for model in due:
        with plane.database.write() as session:  # first, so that no strip is shown whose pictures are gone
            session.execute(delete(Sample).where(Sample.job_id == model.job_id))
            session.execute(delete(StepScore).where(StepScore.job_id == model.job_id))
        attempts = keys.attempt(model.tenant_id, model.job_id, 0).removesuffix("0")
        doomed = [key for key in plane.store.keys(attempts) if not key.endswith("/driver.log")]
        plane.store.delete(*doomed)
        with plane.database.write() as session:
            session.execute(delete(Model).where(Model.id == model.id))


def purge_runs(plane: Plane) -> None:
    """Runs that were deleted, whose life is over (generations), or whose submission broke off have no object left.

    Their rows go last; one of which something still runs waits. A group's jobs and models stay.
    """
    now = plane.now()
    never_stored = ~Run.is_stored & (Run.created_at < now - UNSTORED_LIFE)
    is_over = Run.finished_at < now - timedelta(seconds=plane.settings.generation_life_s)
    expired = is_over & (Run.kind == "generation")
    is_open = exists().where(RunAttempt.run_id == Run.id, RunAttempt.state != AttemptState.CLOSED)
    with plane.database.write() as session:  # first, so that no picture is shown that is gone
        session.execute(update(Run).where(expired | never_stored, Run.deleted_at.is_(None)).values(deleted_at=now))
        due = list(session.scalars(select(Run).where(Run.deleted_at.is_not(None), ~is_open)))
    for run in due:
        plane.store.delete(*plane.store.keys(f"{keys.run(run.kind, run.tenant_id, run.id)}/"))
        with plane.database.write() as session:
            session.execute(update(Job).where(Job.group_id == run.id).values(group_id=None))
            session.execute(delete(RunAttempt).where(RunAttempt.run_id == run.id))
            session.execute(delete(Run).where(Run.id == run.id))


def clear_unpublished(plane: Plane, job: Job, attempt: Attempt) -> None:
    """Of an attempt that ended without a model no weights are left: its ranks may have been killed between two files,
    or two chunks of one. Nothing of it runs any more."""
    if attempt.reason is not None:
        plane.store.delete(*plane.store.keys(f"{keys.attempt(job.tenant_id, job.id, attempt.n)}/model/"))


def abort_weights(plane: Plane) -> None:
    """No upload in parts is left of an attempt that has ended: its ranks were killed, or the store was away from them.

    Such uploads are in no listing of objects, and every store charges for their parts.
    """
    begun = [(upload, keys.attempt_of(upload.key)) for upload in plane.store.uploads(keys.TENANTS)]
    if not begun:
        return
    with plane.database.read() as session:  # after the listing: what is begun later is not looked at
        query = select(Attempt, Job.tenant_id).join(Job, Job.id == Attempt.job_id)
        active = session.execute(query.where(Attempt.state == AttemptState.ACTIVE))
        alive = {keys.attempt(tenant_id, attempt.job_id, attempt.n) for attempt, tenant_id in active}
    for upload, prefix in begun:
        if prefix is not None and prefix not in alive:
            plane.store.abort(upload)


def sweep_pictures(plane: Plane) -> None:
    """Pictures that links were given for are gone, day by day, when a day's last one has had its life.

    The deletion of a model does not look for them: nothing says which model drew one but the file itself.
    """
    over = plane.now() - timedelta(seconds=plane.settings.picture_life_s)
    for folder in plane.store.folders(keys.PICTURES):
        day = keys.pictures_day(folder)
        if day is not None and day < over.date():
            plane.store.delete(*plane.store.keys(folder))
