"""Evaluations on their way in, as their owners see them, and what their drivers are told."""

import hashlib

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from booth.contract.attempts import InstancePhoto
from booth.contract.evaluation import (
    EvaluationBrief,
    EvaluationRecord,
    EvaluationSettings,
    EvaluationSpec,
    Report,
)
from booth.contract.jobs import JobFailure
from booth.contract.models import Recipe
from booth.contract.states import Desired, RunState
from booth_service.control import evaluation_arms, run_policy, serving
from booth_service.control.admission import other_request
from booth_service.control.evaluation_arms import Compared
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict, invalid
from booth_service.control.records import EncoderSuite, Evaluation, Job, RunAttempt, new_id
from booth_service.control.views import stored_files

PACES_LOOKED_AT = 50  # of the newest runs of a base model


def submit(plane: Plane, tenant_id: str, spec: EvaluationSpec, key: str) -> tuple[EvaluationRecord, bool]:
    """The evaluation, and True where this key had made it before. Raises not_found, invalid, conflict."""
    digest = hashlib.sha256(f"evaluation {spec.canonical_json()}".encode()).hexdigest()
    evaluation = _earlier(plane, tenant_id, key)
    replayed = evaluation is not None
    if evaluation is None:
        row = _row(plane, tenant_id, spec)
        row.idempotency_key, row.request_sha256 = key, digest
        evaluation = _inserted(plane, row)
    if evaluation.request_sha256 != digest:
        raise other_request(key)
    if evaluation.deleted_at is not None:
        raise conflict("The evaluation that this key made was deleted.", "Use a new key.")
    with plane.database.read() as session:
        return record_of(session, session.get_one(Evaluation, evaluation.id)), replayed


def record_of(session: Session, evaluation: Evaluation) -> EvaluationRecord:
    """The evaluation as its owner sees it."""
    settings = EvaluationSettings.model_validate(evaluation.settings)
    return EvaluationRecord(
        id=evaluation.id,
        model_id=evaluation.model_id or "",
        status=evaluation.state,
        status_detail=evaluation.status_detail,
        done=evaluation.done,
        total=evaluation.total,
        settings=settings,
        seconds_per_picture=_pace(session, evaluation, settings),
        images_per_second=evaluation.images_per_second,
        eta_s=evaluation.eta_s,
        error=None if evaluation.error is None else JobFailure.model_validate(evaluation.error),
        attempt=evaluation.attempt,
        cancel_requested=evaluation.desired is Desired.CANCEL,
        created_at=evaluation.created_at,
        started_at=evaluation.started_at,
        finished_at=evaluation.finished_at,
    )


def brief(plane: Plane, session: Session, evaluation: Evaluation, attempt: RunAttempt) -> EvaluationBrief:
    """All that the attempt's driver needs to know. Its models are there."""
    settings = EvaluationSettings.model_validate(evaluation.settings)
    spec = settings.spec
    compared = evaluation_arms.compared(session, evaluation.tenant_id, spec)
    suite = session.get_one(EncoderSuite, settings.suite_id)
    photos = photos_of(session, compared[0])
    arms = evaluation_arms.arms(settings, compared, photos)
    return EvaluationBrief(
        evaluation_id=evaluation.id,
        tenant_id=evaluation.tenant_id,
        attempt=attempt.n,
        fence=attempt.fence,
        subject=compared[0].model.name,
        arms=arms,
        photos=list(photos),
        suite=suite.name,
        suite_files=stored_files(suite.files),
        num_images=spec.num_images,
        num_class_images=spec.num_class_images,
        seed=spec.seed,
        block_size=settings.block_size,
        total=evaluation.total,
        serving_gpus=plane.settings.serving_gpus,
        is_unseen_told=evaluation_arms.is_unseen_told(spec, photos),
        settings=evaluation_arms.told(settings, compared),
    )


def photos_of(session: Session, compared: Compared) -> list[InstancePhoto]:
    """The photos that the model learnt this subject from."""
    job = session.get_one(Job, compared.model.job_id)
    photos = [InstancePhoto.model_validate(row) for row in job.photos]
    return [photo for photo in photos if photo.subject == compared.subject]


def check_report(plane: Plane, key: str, sha256: str) -> None:
    """The stored report has this hash and is one. Raises StorageError."""
    Report.model_validate_json(plane.store.get(key, sha256))


def _row(plane: Plane, tenant_id: str, spec: EvaluationSpec) -> Evaluation:
    with plane.database.read() as session:
        compared = evaluation_arms.compared(session, tenant_id, spec)
        recipe = Recipe.model_validate(compared[0].base.recipe)
        suite = evaluation_arms.suite(session, spec.suite or recipe.encoders)
        photos = photos_of(session, compared[0])
    problems = evaluation_arms.photo_problems(plane.store, compared[0], photos)
    if problems:
        raise invalid(problems)
    resolution = compared[0].params.resolution
    settings = EvaluationSettings(
        spec=spec,
        suite=suite.name,
        suite_id=suite.id,
        templates=evaluation_arms.templates(spec, recipe),
        guidance_scale=recipe.guidance_scale if spec.guidance_scale is None else spec.guidance_scale,
        num_inference_steps=spec.num_inference_steps or recipe.score_num_inference_steps or recipe.num_inference_steps,
        resolution=resolution,
        block_size=run_policy.block_size(plane.settings, resolution, resolution),
    )
    arms = evaluation_arms.arms(settings, compared, photos)
    return Evaluation(
        id=new_id("eval"),
        tenant_id=tenant_id,
        model_id=spec.model_id,
        base_model_id=compared[0].base.id,
        is_stored=True,
        settings=settings.model_dump(mode="json"),
        state=RunState.QUEUED,
        status_detail="Waiting to be started.",
        total=sum(arm.total(spec.num_images, spec.num_class_images) for arm in arms),
        created_at=plane.now(),
    )


def _inserted(plane: Plane, row: Evaluation) -> Evaluation:
    """The row is in SQL; or that of the same submission is, which ran beside this one."""
    try:
        with plane.database.write() as session:
            serving.owned_model(session, row.tenant_id, row.model_id or "")
            session.add(row)
    except IntegrityError:
        if (earlier := _earlier(plane, row.tenant_id, row.idempotency_key)) is None:
            raise
        return earlier
    return row


def _earlier(plane: Plane, tenant_id: str, key: str) -> Evaluation | None:
    same = (Evaluation.tenant_id == tenant_id, Evaluation.idempotency_key == key)
    with plane.database.read() as session:
        return session.scalar(select(Evaluation).where(*same))


def _pace(session: Session, evaluation: Evaluation, settings: EvaluationSettings) -> float | None:
    """Seconds a picture of the newest evaluation of the same base model that drew as many steps of the same size."""
    alike = (Evaluation.base_model_id == evaluation.base_model_id, Evaluation.state == RunState.SUCCEEDED)
    query = select(Evaluation).where(*alike, Evaluation.id != evaluation.id).order_by(Evaluation.id.desc())
    for other in session.scalars(query.limit(PACES_LOOKED_AT)):
        theirs = EvaluationSettings.model_validate(other.settings)
        same = (theirs.num_inference_steps, theirs.resolution) == (settings.num_inference_steps, settings.resolution)
        if same and other.attempt == 1 and other.started_at is not None and other.finished_at is not None:
            return (other.finished_at - other.started_at).total_seconds() / other.total
    return None
