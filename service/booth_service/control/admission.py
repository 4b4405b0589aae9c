"""Jobs on their way in: what a spec means here (prepare), and the transaction that makes it a job (submit)."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from booth.contract.attempts import ClassPhoto
from booth.contract.jobs import JobRecord, JobSpec, Params, PreparedJob, Progress
from booth.contract.models import Recipe
from booth.contract.problems import FieldProblem
from booth.contract.states import JobState
from booth_service.control import (
    base_models,
    class_photos,
    inversion,
    one_photo,
    photos,
    picture_sides,
    resolve,
    scoring,
    tokens,
    warnings,
)
from booth_service.control.lifecycle import owned_job, record
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, invalid
from booth_service.control.records import BaseModel, Idempotency, Job, new_id
from booth_service.control.views import job_record, prompt_prefixes, stored_files


@dataclass(frozen=True)
class Meaning:
    """What a valid spec comes to on this service."""

    base: BaseModel
    params: Params
    warnings: list[str]


def prepare(plane: Plane, tenant_id: str, spec: JobSpec) -> PreparedJob:
    """The spec is valid, and its photos may now be uploaded. Raises `invalid` with every bad field."""
    meaning = interpret(plane, tenant_id, spec)
    photos.expect(plane, tenant_id, spec)
    uploads = photos.targets(plane, tenant_id, spec)
    return PreparedJob(params=meaning.params, warnings=meaning.warnings, uploads=uploads)


def submit(plane: Plane, tenant_id: str, spec: JobSpec, key: str) -> tuple[JobRecord, bool]:
    """The job, and True where this key had made it before. Nothing is left of a refused one but listed uploads."""
    digest = hashlib.sha256(spec.canonical_json().encode()).hexdigest()
    if (earlier := _earlier(plane, tenant_id, key, digest)) is not None:
        return earlier, True
    try:
        meaning = interpret(plane, tenant_id, spec)
        photos.expect(plane, tenant_id, spec)
        accepted = photos.accept(plane, tenant_id, spec, meaning.params.crop)
        class_images = class_photos.accepted(plane, tenant_id, spec)
        job = _store(plane, tenant_id, spec, meaning, accepted, class_images, (key, digest))
    except (ProblemError, IntegrityError):
        # The same submission may have run beside this one and taken key and uploads.
        if (earlier := _earlier(plane, tenant_id, key, digest)) is not None:
            return earlier, True
        raise
    photos.discard_raw(plane, tenant_id, spec)
    return job_record(job), False


def interpret(plane: Plane, tenant_id: str, spec: JobSpec) -> Meaning:
    """Base model, values and warnings. Raises `invalid` with every bad field."""
    with plane.database.read() as session:
        base = base_models.find(session, spec.base_model)
        used = _used_tokens(session, tenant_id)
        problems = resolve.text_problems(spec) + resolve.token_problems(spec)
        problems += resolve.class_image_problems(spec)
        problems += resolve.held_out_problems(spec)
        problems += inversion.spec_problems(spec)
        problems += base_model_problems(session, spec.base_model)
    is_one_photo = spec.method == one_photo.METHOD
    if is_one_photo:
        problems += one_photo.problems_of(spec, base)
    if base is not None and spec.resolution is not None:
        multiple = picture_sides.side_multiple_px(plane.store, stored_files(base.files))
        problems += picture_sides.resolution_problems(spec.resolution, multiple)
    if base is None or problems:
        raise invalid(problems)
    recipe = Recipe.model_validate(base.recipe)
    vocabulary = plane.tokenizers.of(stored_files(base.files))
    asked = [spec.token, *(further.token for further in spec.more_subjects)]
    chosen = [""] if is_one_photo else tokens.choose_tokens(asked, recipe, vocabulary, used)
    if problems := inversion.base_problems(spec, recipe, vocabulary, chosen[0]):
        raise invalid(problems)
    params = resolve.resolve(spec, recipe, base_model=base.name, tokens=chosen)
    try:
        with plane.database.read() as session:
            how = scoring.resolve_scoring(session, spec, params, recipe)
    except scoring.Refused as refused:
        raise invalid(refused.problems) from refused
    params = params.model_copy(update={"scoring": how})
    return Meaning(base, params, warnings.of_spec(spec, params, recipe, vocabulary))


def base_model_problems(session: Session, name: str | None) -> list[FieldProblem]:
    """Why no base model can be meant by this name (None: the default one)."""
    if base_models.find(session, name) is not None:
        return []
    known = ", ".join(base.name for base in base_models.current(session))
    if name is None:
        message, remedy = "This service has no default base model.", f"Name one of: {known}."
    else:
        message, remedy = f"There is no base model {name!r}.", f"Use one of: {known}."
    if not known:
        remedy = "Ask the operator to add one: boothctl base-models add."
    return [FieldProblem(field="base_model", value=repr(name), message=message, remedy=remedy)]


def _earlier(plane: Plane, tenant_id: str, key: str, digest: str) -> JobRecord | None:
    with plane.database.read() as session:
        row = session.get(Idempotency, (tenant_id, key))
        if row is None:
            return None
        if row.request_sha256 != digest:
            raise other_request(key)
        return job_record(owned_job(session, tenant_id, row.job_id))


def other_request(key: str) -> ProblemError:
    """The refusal of an idempotency key that came with something else before."""
    message = "This key was used for another request."
    return invalid([FieldProblem(field="Idempotency-Key", value=key, message=message, remedy="Use a new key.")])


def new_job(
    tenant_id: str,
    spec: JobSpec,
    meaning: Meaning,
    accepted: list[photos.Accepted],
    class_images: list[ClassPhoto],
    now: datetime,
) -> Job:
    """The row of a job that nobody has refused."""
    photo_rows: list[Any] = [each.photo.model_dump() for each in accepted]
    trained = [(each.filename, each.size) for each in accepted if not each.photo.held_out]
    seen = warnings.of_photos(meaning.params, trained)
    return Job(
        id=new_id("job"),
        tenant_id=tenant_id,
        base_model_id=meaning.base.id,
        name=spec.name or " + ".join(prompt_prefixes(meaning.params)),
        spec=spec.model_dump(mode="json"),
        params=meaning.params.model_dump(),
        warnings=[*meaning.warnings, *seen],
        photos=photo_rows,
        class_photos=[photo.model_dump() for photo in class_images],
        state=JobState.QUEUED,
        status_detail="Waiting to be started.",
        progress=Progress().model_dump(),
        last_event=0,
        created_at=now,
    )


def record_accepted(session: Session, job: Job) -> None:
    """The history of a job whose row is there begins."""
    record(session, job, job.created_at, "state", "The job was accepted.")
    for warning in job.warnings:
        record(session, job, job.created_at, "warning", warning)


def _store(
    plane: Plane,
    tenant_id: str,
    spec: JobSpec,
    meaning: Meaning,
    accepted: list[photos.Accepted],
    class_images: list[ClassPhoto],
    idempotency: tuple[str, str],
) -> Job:
    now = plane.now()
    job = new_job(tenant_id, spec, meaning, accepted, class_images, now)
    key, digest = idempotency
    with plane.database.write() as session:
        session.add(job)
        session.flush()
        session.add(Idempotency(tenant_id=tenant_id, key=key, request_sha256=digest, job_id=job.id, created_at=now))
        photos.unlist(session, tenant_id, spec)
        record_accepted(session, job)
    return job


def _used_tokens(session: Session, tenant_id: str) -> Counter[str]:
    token, further = Job.params["token"].as_string(), Job.params["more_subjects"]
    rows = session.execute(select(token, func.count()).where(Job.tenant_id == tenant_id).group_by(token))
    used = Counter({word: count for word, count in rows})
    several = session.scalars(select(further).where(Job.tenant_id == tenant_id, func.json_array_length(further) > 0))
    used.update(subject["token"] for subjects in several for subject in subjects)
    return used
