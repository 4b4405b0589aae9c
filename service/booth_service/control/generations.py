"""Generations on their way in, as their owners see them, and what their drivers are told."""

import hashlib
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from booth.contract.bulk import GenerationBrief, GenerationManifest, Prompts
from booth.contract.generations import (
    GenerationPicture,
    GenerationPicturePage,
    GenerationRecord,
    GenerationSettings,
    GenerationSpec,
)
from booth.contract.models import GenerateRequest
from booth.contract.serving import DrawRequest, ModelRef
from booth.contract.states import RunState
from booth_service.control import base_models, pictures, serving
from booth_service.control.admission import other_request
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict
from booth_service.control.records import BaseModel, Generation, Model, RunAttempt, new_id
from booth_service.control.run_policy import block_size
from booth_service.control.views import generation_record
from booth_service.errors import DamagedObject
from booth_service.storage import keys
from booth_service.storage.generation_blocks import firsts, read_blocks

BLOCK_LIMIT_S = 7 * 24 * 3600.0  # what does not move is noticed long before, by the reconciler


@dataclass(frozen=True)
class Target:
    """What draws: the tenant's model with this id, or the base model of this name."""

    model_id: str | None = None
    base_model: str | None = None


def submit(
    plane: Plane, tenant_id: str, target: Target, spec: GenerationSpec, key: str
) -> tuple[GenerationRecord, bool]:
    """The generation, and True where this key had made it before. Raises not_found, invalid, conflict.

    Its row comes first and is invisible until its prompts are stored, so that nothing is stored that no row names.
    """
    prompts = Prompts(prompts=spec.prompts).model_dump_json().encode()
    digest = hashlib.sha256(f"{target} {spec.canonical_json()}".encode()).hexdigest()
    generation = _earlier(plane, tenant_id, key)
    replayed = generation is not None
    if generation is None:
        row = _row(plane, tenant_id, target, spec)
        row.idempotency_key, row.request_sha256 = key, digest
        row.prompts_sha256 = hashlib.sha256(prompts).hexdigest()
        generation = _inserted(plane, row, target)
    if generation.request_sha256 != digest:
        raise other_request(key)
    if generation.deleted_at is not None:
        raise conflict("The generation that this key made was deleted.", "Use a new key.")
    if not generation.is_stored:
        prefix = keys.generation(tenant_id, generation.id)
        plane.store.put(keys.generation_prompts(prefix), prompts, "application/json")
    with plane.database.write() as session:
        stored = session.get_one(Generation, generation.id)
        stored.is_stored = True
        return record_of(session, stored), replayed


def record_of(session: Session, generation: Generation) -> GenerationRecord:
    """The generation as its owner sees it."""
    return generation_record(generation, session.get_one(BaseModel, generation.base_model_id).name)


def picture_page(plane: Plane, generation: Generation, after: int, limit: int) -> GenerationPicturePage:
    """The finished ones of the `limit` pictures that follow number `after`, each with a link."""
    prefix = keys.generation(generation.tenant_id, generation.id)
    stop = min(after + 1 + limit, generation.total)
    blocks = read_blocks(plane.store, prefix, firsts(generation.block_size, after + 1, stop))
    drawn = [each for _, block in sorted(blocks.items()) for each in block.pictures if after < each.index < stop]
    life_s = plane.settings.download_link_s
    linked = [
        GenerationPicture(**each.model_dump(exclude={"key"}), url=plane.store.download_link(each.key, life_s))
        for each in drawn
    ]
    return GenerationPicturePage(pictures=linked, next_after=stop - 1 if stop < generation.total else None)


def brief(plane: Plane, session: Session, generation: Generation, attempt: RunAttempt) -> GenerationBrief:
    """All that the attempt's driver needs to know. Its model is there."""
    settings = GenerationSettings.model_validate(generation.settings)
    shared = settings.model_dump(exclude={"seed", "num_images", "negative_prompt"})
    request = DrawRequest(model=_ref(session, generation), draws=[], timeout_s=BLOCK_LIMIT_S, **shared)
    return GenerationBrief(
        generation_id=generation.id,
        tenant_id=generation.tenant_id,
        attempt=attempt.n,
        fence=attempt.fence,
        request=request,
        prompts_sha256=generation.prompts_sha256,
        num_images=settings.num_images,
        seed=settings.seed,
        negative_prompt=settings.negative_prompt,
        block_size=generation.block_size,
        total=generation.total,
        serving_gpus=plane.settings.serving_gpus,
    )


def check_manifest(plane: Plane, generation: Generation, key: str, sha256: str) -> None:
    """The stored manifest has this hash and names every picture once. Raises StorageError."""
    manifest = GenerationManifest.model_validate_json(plane.store.get(key, sha256))
    if [picture.index for picture in manifest.pictures] != list(range(generation.total)):
        raise DamagedObject(f"{key} does not name the {generation.total} pictures of {generation.id} in order")


def _ref(session: Session, generation: Generation) -> ModelRef:
    base = session.get_one(BaseModel, generation.base_model_id)
    model = None if generation.model_id is None else session.get_one(Model, generation.model_id)
    return serving.model_ref(base, model)


def _row(plane: Plane, tenant_id: str, target: Target, spec: GenerationSpec) -> Generation:
    """What one of its pictures comes to at the endpoint, all of them come to."""
    asked = GenerateRequest(prompts=spec.prompts[:1], **spec.model_dump(exclude={"prompts", "num_images"}))
    if target.model_id is not None:
        one = pictures.of_model(plane, tenant_id, target.model_id, asked)
    else:
        one = pictures.of_base_model(plane, target.base_model or "", asked)
    settings = GenerationSettings(
        seed=one.draws[0].seed,
        num_images=spec.num_images,
        negative_prompt=spec.negative_prompt,
        **one.model_dump(include={"guidance_scale", "num_inference_steps", "width", "height", "scheduler"}),
    )
    return Generation(
        id=new_id("gen"),
        tenant_id=tenant_id,
        model_id=target.model_id,
        prompts=len(spec.prompts),
        is_stored=False,
        settings=settings.model_dump(),
        block_size=block_size(plane.settings, one.width, one.height),
        state=RunState.QUEUED,
        status_detail="Waiting to be started.",
        total=spec.total,
        created_at=plane.now(),
    )


def _inserted(plane: Plane, row: Generation, target: Target) -> Generation:
    """The row is in SQL; or that of the same submission is, which ran beside this one."""
    try:
        with plane.database.write() as session:
            if target.model_id is not None:
                row.base_model_id = serving.owned_model(session, row.tenant_id, target.model_id).base_model_id
            else:
                row.base_model_id = base_models.named(session, target.base_model or "").id
            session.add(row)
    except IntegrityError:
        if (earlier := _earlier(plane, row.tenant_id, row.idempotency_key)) is None:
            raise
        return earlier
    return row


def _earlier(plane: Plane, tenant_id: str, key: str) -> Generation | None:
    same = (Generation.tenant_id == tenant_id, Generation.idempotency_key == key)
    with plane.database.read() as session:
        return session.scalar(select(Generation).where(*same))
