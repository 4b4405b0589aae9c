"""The drivers' HTTP API: brief, beats, and how an attempt ended. Each route takes its attempt's token alone."""

from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from sqlalchemy import select

from booth.contract.attempts import (
    Beat,
    BeatReply,
    Brief,
    ClassPhoto,
    ClassSetLease,
    Failed,
    Found,
    InstancePhoto,
    Manifest,
    Published,
    StoredFile,
)
from booth.contract.jobs import Params
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth.contract.serving import ModelRef
from booth.contract.states import JobState
from booth_service.control import class_sets, lifecycle, one_photo, policy, scores, warm
from booth_service.control.auth import Here, check_attempt
from booth_service.control.photo_verification import verify_photo
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.control.records import BaseModel, EncoderSuite, Job, Model, new_id
from booth_service.control.verification import Claim, verify
from booth_service.control.views import stored_files
from booth_service.errors import BadWeights

Address = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]

router = APIRouter(prefix="/internal/attempts/{job_id}/{number}", dependencies=[Depends(check_attempt)])


@router.get("")
def get_brief(job_id: str, number: int, plane: Here) -> Brief:
    """All that the driver needs to know; conflict where the attempt is over."""
    with plane.database.read() as session:
        job, attempt = lifecycle.live_attempt(session, job_id, number)
        base = session.get_one(BaseModel, job.base_model_id)
        params = Params.model_validate(job.params)
        suite = session.get_one(EncoderSuite, params.scoring.suite_id) if params.scoring else None
        standing = scores.of_job(session, job)
        is_last_try = lifecycle.is_last_try(session, job, attempt, plane.settings)
    return Brief(
        job_id=job.id,
        tenant_id=job.tenant_id,
        attempt=attempt.n,
        fence=attempt.fence,
        params=params,
        photos=[InstancePhoto.model_validate(photo) for photo in job.photos],
        base_model=base.name,
        base_files=stored_files(base.files),
        recipe=Recipe.model_validate(base.recipe),
        serving_gpus=plane.settings.serving_gpus,
        max_ranks=plane.settings.max_ranks,
        min_zero_stage=plane.settings.min_zero_stage,
        first_step_limit_s=plane.settings.first_step_limit_s,
        class_photos=[ClassPhoto.model_validate(photo) for photo in job.class_photos],
        share_class_images=plane.settings.share_class_images,
        references=_references(base, job) if plane.settings.delta_store else [],
        adapter_files=stored_files(base.adapter_files) if params.method == one_photo.METHOD else [],
        suite_files=stored_files(suite.files) if suite else [],
        scores=standing,
        is_training=job.state is JobState.TRAINING,
        selected_step=job.selected_step,
        is_last_try=is_last_try,
        resume_key=job.checkpoint_key,
    )


@router.post("/beat")
def post_beat(job_id: str, number: int, beat: Beat, plane: Here) -> BeatReply:
    """What the driver says is stored; what the owner wants comes back."""
    with plane.database.write() as session:
        return BeatReply(desired=lifecycle.beat(session, job_id, number, beat, plane.now()))


@router.post("/found")
def post_found(job_id: str, number: int, found: Found, plane: Here) -> dict[str, str]:
    """What the attempt's checkpoints came to beside its gang is stored; conflict where the attempt is over."""
    with plane.database.write() as session:
        lifecycle.found(session, job_id, number, found, plane.now())
    return {}


@router.post("/class-sets/{address}")
def claim_class_set(job_id: str, number: int, address: Address, plane: Here) -> ClassSetLease:
    """The lease of a class-image set is the attempt's, or the answer says whose it is."""
    is_shared = plane.settings.share_class_images
    with plane.database.write() as session:
        holder = class_sets.claim(session, job_id, number, address, plane.now(), is_shared=is_shared)
    return ClassSetLease(holder=holder)


@router.delete("/class-sets/{address}")
def release_class_set(job_id: str, number: int, address: Address, plane: Here) -> dict[str, str]:
    """The lease is the attempt's no more."""
    with plane.database.write() as session:
        class_sets.release(session, job_id, number, address, is_shared=plane.settings.share_class_images)
    return {}


@router.post("/published")
def post_published(job_id: str, number: int, published: Published, plane: Here) -> dict[str, str]:
    """The model is verified, warm where a replica is up, and visible. Invalid, and the attempt over, where it fails
    verification."""
    with plane.database.read() as session:
        model = session.scalar(select(Model).where(Model.job_id == job_id))
        if model is not None and model.manifest_sha256 == published.manifest_sha256:
            return {}  # the first answer was lost on its way
        job, _ = lifecycle.live_attempt(session, job_id, number, published.fence)
        base = session.get_one(BaseModel, job.base_model_id)
    try:
        claim = Claim(job, number, stored_files(base.files), _references(base, job))
        manifest = _verified(plane, claim, base, published)
    except BadWeights as bad:
        _end(plane, job_id, number, Failed(fence=published.fence, reason=bad.reason, detail=bad.detail))
        problem = FieldProblem(field="manifest", value=published.manifest_key, message=bad.detail)
        raise invalid([problem]) from bad
    total_bytes = sum(file.bytes for file in manifest.files)
    ref = ModelRef(
        model_id=new_id("model"),
        base_model=base.name,
        base_files=stored_files(base.files),
        manifest_key=published.manifest_key,
        manifest_sha256=published.manifest_sha256,
    )
    # The models of a group are many, and nobody asks for a picture of each at once.
    with nullcontext() if job.group_id else warm.handed_over(plane, ref), plane.database.write() as session:
        lifecycle.succeed(session, job_id, number, published.fence, ref, total_bytes, plane.now())
    return {}


@router.post("/failed")
def post_failed(job_id: str, number: int, failed: Failed, plane: Here) -> dict[str, str]:
    """The attempt is over; its job is tried again, failed or was cancelled."""
    _end(plane, job_id, number, failed)
    return {}


def _end(plane: Plane, job_id: str, number: int, failed: Failed) -> None:
    end = policy.End(failed.reason, failed.detail)
    with plane.database.write() as session:
        lifecycle.end_attempt(session, job_id, number, failed.fence, end, plane.settings, plane.now())


def _verified(plane: Plane, claim: Claim, base: BaseModel, published: Published) -> Manifest:
    """The manifest, checked as its job's method asks. Raises BadWeights, StorageError."""
    if Params.model_validate(claim.job.params).method == one_photo.METHOD:
        return verify_photo(plane.store, claim, stored_files(base.adapter_files), published)
    return verify(plane.store, claim, published)


def _references(base: BaseModel, job: Job) -> list[StoredFile]:
    """What publishing the base untrained would give in the format that the job asks for, where it was made."""
    return stored_files(base.references.get(Params.model_validate(job.params).export_dtype, []))
