"""The users' HTTP API: jobs, models, base models. Every route acts for the tenant of its key."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import ColumnElement, Select, select
from starlette.responses import JSONResponse

from booth.contract.attempts import Manifest, StoredFile
from booth.contract.encoders import EncoderSuitePage
from booth.contract.evaluation import JobScores
from booth.contract.jobs import (
    CheckedClassImages,
    ClassImagesToCheck,
    EventPage,
    JobPage,
    JobRecord,
    JobSpec,
    LogPage,
    PreparedJob,
)
from booth.contract.models import (
    BaseModelPage,
    ChunkLink,
    ModelDelta,
    ModelFile,
    ModelFiles,
    ModelPage,
    ModelRecord,
)
from booth.contract.samples import JobSamples
from booth.contract.states import JobState
from booth_service.control import (
    admission,
    attempt_logs,
    base_models,
    class_photos,
    encoder_suites,
    lifecycle,
    samples,
    scores,
    serving,
)
from booth_service.control.auth import Caller, Here
from booth_service.control.plane import Plane
from booth_service.control.records import BaseModel, Job, JobEvent, Model, Run
from booth_service.control.views import base_model_record, event_record, job_record, model_record, stored_files
from booth_service.errors import StorageError
from booth_service.storage import keys

MAX_WAIT_S = 30
POLL_INTERVAL_S = 0.25
EVENTS_PER_PAGE = 500

Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(max_length=100)]
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=200)]

router = APIRouter(prefix="/v1")


@router.get("/health")
def health() -> dict[str, str]:
    """The control plane answers."""
    return {"status": "ok", "version": version("booth")}


@router.get("/ready")
async def ready(plane: Here) -> JSONResponse:
    """Whether database and bucket answer: 200, else 503. Of Ray and Serve it is said alone: they may come later."""
    found = await plane.readiness.look(plane)
    return JSONResponse({"status": "ready" if found.is_ready else "not ready", **asdict(found)}, found.status_code)


@router.get("/base-models")
def list_base_models(_tenant: Caller, plane: Here) -> BaseModelPage:
    """All base models that jobs can start from."""
    with plane.database.read() as session:
        return BaseModelPage(base_models=[base_model_record(base) for base in base_models.current(session)])


@router.get("/encoder-suites")
def list_encoder_suites(_tenant: Caller, plane: Here) -> EncoderSuitePage:
    """All suites of encoders that scores can be measured with."""
    with plane.database.read() as session:
        return EncoderSuitePage(suites=[encoder_suites.record(suite) for suite in encoder_suites.current(session)])


@router.post("/jobs/prepare")
def prepare_job(spec: JobSpec, tenant: Caller, plane: Here) -> PreparedJob:
    """What the spec comes to, and where to put the photos that are missing."""
    return admission.prepare(plane, tenant, spec)


@router.post("/class-images")
def check_class_images(asked: ClassImagesToCheck, tenant: Caller, plane: Here) -> CheckedClassImages:
    """Uploaded class images of the user's own are checked and stored, so that a job may name them."""
    return CheckedClassImages(checked=class_photos.check(plane, tenant, asked.images))


@router.post("/jobs", status_code=202)
def submit_job(
    spec: JobSpec, tenant: Caller, plane: Here, response: Response, idempotency_key: IdempotencyKey
) -> JobRecord:
    """The job, stored. A repetition under the same key answers the same job."""
    job, replayed = admission.submit(plane, tenant, spec, idempotency_key)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return job


@router.get("/jobs")
def list_jobs(
    tenant: Caller, plane: Here, limit: Limit = 50, after: After = None, status: JobState | None = None
) -> JobPage:
    """The tenant's jobs, newest first."""
    conditions = [Job.tenant_id == tenant] + ([Job.state == status] if status else [])
    with plane.database.read() as session:
        jobs = list(session.scalars(newest_first(select(Job), Job.id, conditions, after, limit)))
    return JobPage(jobs=[job_record(job) for job in jobs[:limit]], next_after=next_after(jobs, limit))


@router.get("/jobs/{job_id}")
def get_job(job_id: str, tenant: Caller, plane: Here) -> JobRecord:
    """One job."""
    with plane.database.read() as session:
        return job_record(lifecycle.owned_job(session, tenant, job_id))


@router.post("/jobs/{job_id}/cancel", status_code=202)
def cancel_job(job_id: str, tenant: Caller, plane: Here) -> JobRecord:
    """The job, cancelled or about to be."""
    with plane.database.write() as session:
        return job_record(lifecycle.request_cancel(session, tenant, job_id, plane.now()))


@router.get("/jobs/{job_id}/events")
async def get_events(
    job_id: str,
    tenant: Caller,
    plane: Here,
    after: Annotated[int, Query(ge=0)] = 0,
    wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
) -> EventPage:
    """Events after `after`: at once where there are any or the job is final, else within `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        page = await run_in_threadpool(_events_now, plane, tenant, job_id, after)
        if page.events or page.job.status.is_final or time.monotonic() >= deadline:
            return page
        await asyncio.sleep(POLL_INTERVAL_S)


@router.get("/jobs/{job_id}/logs")
def get_logs(job_id: str, tenant: Caller, plane: Here, offset: Annotated[int, Query(ge=0)] = 0) -> LogPage:
    """What the driver of the latest attempt printed, from `offset` characters on."""
    return attempt_logs.page(plane, tenant, job_id, offset)


@router.get("/jobs/{job_id}/samples")
def get_samples(job_id: str, tenant: Caller, plane: Here) -> JobSamples:
    """What the job drew on its way, the earliest step first, each picture with a link that works for a few minutes."""
    with plane.database.read() as session:
        job = lifecycle.owned_job(session, tenant, job_id)
        rows = samples.of_job(session, job)
    return samples.linked(job, rows, lambda key: plane.store.download_link(key, plane.settings.download_link_s))


@router.get("/jobs/{job_id}/scores")
def get_scores(job_id: str, tenant: Caller, plane: Here) -> JobScores:
    """What the job's weights came to, the earliest step first, without cases and pictures."""
    with plane.database.read() as session:
        return scores.shown(session, lifecycle.owned_job(session, tenant, job_id))


@router.get("/models")
def list_models(tenant: Caller, plane: Here, limit: Limit = 50, after: After = None) -> ModelPage:
    """The tenant's models, newest first."""
    conditions = [Model.tenant_id == tenant, Model.deleted_at.is_(None)]
    with plane.database.read() as session:
        models = list(session.scalars(newest_first(select(Model), Model.id, conditions, after, limit)))
    return ModelPage(models=[model_record(model) for model in models[:limit]], next_after=next_after(models, limit))


@router.get("/models/{model_id}")
def get_model(model_id: str, tenant: Caller, plane: Here) -> ModelRecord:
    """One model."""
    with plane.database.read() as session:
        return model_record(serving.owned_model(session, tenant, model_id))


@router.delete("/models/{model_id}", status_code=204)
def delete_model(model_id: str, tenant: Caller, plane: Here, afterwards: BackgroundTasks) -> None:
    """The model is gone for its user; objects, row and Serve's copies follow within a minute."""
    with plane.database.write() as session:
        model = serving.owned_model(session, tenant, model_id)
        model.deleted_at = plane.now()
        afterwards.add_task(serving.forget, plane, model.manifest_sha256)


@router.get("/models/{model_id}/files")
def get_model_files(model_id: str, tenant: Caller, plane: Here) -> ModelFiles:
    """The model's diffusers folder and what lies beside it, each file with a link that works for a few minutes."""
    with plane.database.read() as session:
        model = serving.owned_model(session, tenant, model_id)
    manifest = _manifest(plane, model)
    return _linked(plane, manifest.files, manifest.artefacts)


@router.get("/models/{model_id}/base-files")
def get_base_files(model_id: str, tenant: Caller, plane: Here) -> ModelFiles:
    """The folder of the base model that the model was trained from, even where its name has new files since."""
    with plane.database.read() as session:
        model = serving.owned_model(session, tenant, model_id)
        base = session.get_one(BaseModel, model.base_model_id)
    return _linked(plane, stored_files(base.files))


def _events_now(plane: Plane, tenant_id: str, job_id: str, after: int) -> EventPage:
    later = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after)
    with plane.database.read() as session:
        job = lifecycle.owned_job(session, tenant_id, job_id)
        events = session.scalars(later.order_by(JobEvent.seq).limit(EVENTS_PER_PAGE)).all()
    return EventPage(events=[event_record(event) for event in events], job=job_record(job))


def _linked(plane: Plane, files: list[StoredFile], artefacts: Sequence[StoredFile] = ()) -> ModelFiles:
    return ModelFiles(
        files=[_link(plane, file) for file in files], artefacts=[_link(plane, file) for file in artefacts]
    )


def _link(plane: Plane, file: StoredFile) -> ModelFile:
    link = partial(plane.store.download_link, expires_s=plane.settings.download_link_s)
    said = file.model_dump(exclude={"key", "delta", "row"})
    if file.delta is None:
        return ModelFile(**said, url=link(file.key))
    stored = zip(file.delta.chunk_bytes, file.delta.chunk_sha256, strict=True)
    chunks = [
        ChunkLink(url=link(keys.model_chunk(file.key, part)), bytes=total_bytes, sha256=sha256)
        for part, (total_bytes, sha256) in enumerate(stored)
    ]
    delta = ModelDelta(coding=file.delta.coding, reference=_link(plane, file.delta.reference), chunks=chunks)
    return ModelFile(**said, url="", delta=delta)


def _manifest(plane: Plane, model: Model) -> Manifest:
    body = plane.store.get(model.manifest_key)
    if hashlib.sha256(body).hexdigest() != model.manifest_sha256:
        raise StorageError(f"{model.manifest_key} does not have the recorded SHA-256")
    return Manifest.model_validate_json(body)


def newest_first(
    query: Select[Any], key: Any, conditions: list[ColumnElement[bool]], after: str | None, limit: int
) -> Select[Any]:
    """One row more than asked, to know whether another page follows. Ids sort by creation."""
    if after is not None:
        conditions = [*conditions, key < after]
    return query.where(*conditions).order_by(key.desc()).limit(limit + 1)


def next_after(rows: Sequence[Job | Model | Run], limit: int) -> str | None:
    """Where the next page begins; None on the last one."""
    return rows[limit - 1].id if len(rows) > limit else None
