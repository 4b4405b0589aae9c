"""The users' HTTP API of generations: many pictures of one model, drawn by a job on the cluster."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy import select

from booth.contract.generations import (
    GenerationPage,
    GenerationPicturePage,
    GenerationRecord,
    GenerationSpec,
)
from booth.contract.problems import field_problems
from booth_service.control import generations, run_lifecycle
from booth_service.control.api import After, IdempotencyKey, Limit, newest_first, next_after
from booth_service.control.auth import Caller, Here
from booth_service.control.generations import Target
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.control.records import Generation

# The body is read and checked in the route, after the key and beside the event loop: it may be large.
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": GenerationSpec.model_json_schema()}},
    }
}

router = APIRouter(prefix="/v1")


@router.post("/models/{model_id}/generations", status_code=202, openapi_extra=_BODY)
async def generate_many(
    model_id: str, request: Request, tenant: Caller, plane: Here, response: Response, idempotency_key: IdempotencyKey
) -> GenerationRecord:
    """The generation by the tenant's model, stored. A repetition under the same key answers the same one."""
    body = await request.body()
    return await run_in_threadpool(_submit, plane, tenant, Target(model_id=model_id), body, idempotency_key, response)


@router.post("/base-models/{name}/generations", status_code=202, openapi_extra=_BODY)
async def generate_many_with_base(
    name: str, request: Request, tenant: Caller, plane: Here, response: Response, idempotency_key: IdempotencyKey
) -> GenerationRecord:
    """The same by a base model."""
    body = await request.body()
    return await run_in_threadpool(_submit, plane, tenant, Target(base_model=name), body, idempotency_key, response)


@router.get("/generations")
def list_generations(tenant: Caller, plane: Here, limit: Limit = 50, after: After = None) -> GenerationPage:
    """The tenant's generations, newest first."""
    conditions = [Generation.tenant_id == tenant, Generation.deleted_at.is_(None), Generation.is_stored.is_(True)]
    with plane.database.read() as session:
        rows = list(session.scalars(newest_first(select(Generation), Generation.id, conditions, after, limit)))
        records = [generations.record_of(session, row) for row in rows[:limit]]
    return GenerationPage(generations=records, next_after=next_after(rows, limit))


@router.get("/generations/{generation_id}")
def get_generation(generation_id: str, tenant: Caller, plane: Here) -> GenerationRecord:
    """One generation."""
    with plane.database.read() as session:
        return generations.record_of(session, run_lifecycle.owned(session, Generation, tenant, generation_id))


@router.get("/generations/{generation_id}/pictures")
def get_pictures(
    generation_id: str,
    tenant: Caller,
    plane: Here,
    after: Annotated[int, Query(ge=-1)] = -1,
    limit: Limit = 100,
) -> GenerationPicturePage:
    """The finished ones of the `limit` pictures that follow number `after`; before the end there may be none of them
    yet."""
    with plane.database.read() as session:
        generation = run_lifecycle.owned(session, Generation, tenant, generation_id)
    return generations.picture_page(plane, generation, after, limit)


@router.post("/generations/{generation_id}/cancel", status_code=202)
def cancel_generation(generation_id: str, tenant: Caller, plane: Here) -> GenerationRecord:
    """The generation, cancelled or about to be; what was drawn until then stays."""
    with plane.database.write() as session:
        generation = run_lifecycle.request_cancel(session, Generation, tenant, generation_id, plane.now())
        return generations.record_of(session, generation)


@router.delete("/generations/{generation_id}", status_code=204)
def delete_generation(generation_id: str, tenant: Caller, plane: Here) -> None:
    """The generation is gone for its user; what runs of it ends, and its pictures follow within a minute."""
    with plane.database.write() as session:
        run_lifecycle.delete(session, Generation, tenant, generation_id, plane.now())


def _submit(
    plane: Plane, tenant_id: str, target: Target, body: bytes, key: str, response: Response
) -> GenerationRecord:
    try:
        spec = GenerationSpec.model_validate_json(body)
    except ValidationError as error:
        raise invalid(field_problems(error.errors())) from None
    record, replayed = generations.submit(plane, tenant_id, target, spec, key)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return record
