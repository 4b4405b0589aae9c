"""The users' HTTP API of groups: sweeps and benchmarks, their cells and reports."""

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy import select

from booth.contract.evaluation import ReportFiles
from booth.contract.groups import CellPage, GroupPage, GroupRecord, GroupSpec
from booth.contract.problems import field_problems
from booth_service.control import group_cells, groups, reports, run_lifecycle
from booth_service.control.api import After, IdempotencyKey, Limit, newest_first, next_after
from booth_service.control.auth import Caller, Here
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.control.records import Group

# The body is read and checked in the route, after the key and beside the event loop: it may be large.
_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": GroupSpec.model_json_schema()}}}}

router = APIRouter(prefix="/v1/groups")


@router.post("", status_code=202, openapi_extra=_BODY)
async def submit_group(
    request: Request, tenant: Caller, plane: Here, response: Response, idempotency_key: IdempotencyKey
) -> GroupRecord:
    """The group and the job of each of its cells, stored. A repetition under the same key answers the same one."""
    return await run_in_threadpool(_submit, plane, tenant, await request.body(), idempotency_key, response)


@router.get("")
def list_groups(tenant: Caller, plane: Here, limit: Limit = 50, after: After = None) -> GroupPage:
    """The tenant's groups, newest first."""
    conditions = [Group.tenant_id == tenant, Group.deleted_at.is_(None), Group.is_stored.is_(True)]
    with plane.database.read() as session:
        rows = list(session.scalars(newest_first(select(Group), Group.id, conditions, after, limit)))
        records = [groups.record_of(session, row) for row in rows[:limit]]
    return GroupPage(groups=records, next_after=next_after(rows, limit))


@router.get("/{group_id}")
def get_group(group_id: str, tenant: Caller, plane: Here) -> GroupRecord:
    """One group."""
    with plane.database.read() as session:
        return groups.record_of(session, run_lifecycle.owned(session, Group, tenant, group_id))


@router.get("/{group_id}/cells")
def get_cells(group_id: str, tenant: Caller, plane: Here) -> CellPage:
    """All cells in their order, with the scores that are there by now."""
    with plane.database.read() as session:
        run_lifecycle.owned(session, Group, tenant, group_id)
        return group_cells.page(session, group_id, with_keys=False)


@router.get("/{group_id}/report")
def get_report(group_id: str, tenant: Caller, plane: Here) -> ReportFiles:
    """The finished report; conflict before there is one."""
    with plane.database.read() as session:
        group = run_lifecycle.owned(session, Group, tenant, group_id)
    return reports.of_run(plane, group)


@router.post("/{group_id}/cancel", status_code=202)
def cancel_group(group_id: str, tenant: Caller, plane: Here) -> GroupRecord:
    """The group, cancelled or about to be, with all its cells; models that are there stay."""
    with plane.database.write() as session:
        return groups.record_of(session, groups.request_cancel(plane, session, tenant, group_id))


@router.delete("/{group_id}", status_code=204)
def delete_group(group_id: str, tenant: Caller, plane: Here) -> None:
    """The group is gone for its user, and its report within a minute; jobs and models of its cells stay."""
    with plane.database.write() as session:
        groups.delete(plane, session, tenant, group_id)


def _submit(plane: Plane, tenant_id: str, body: bytes, key: str, response: Response) -> GroupRecord:
    try:
        spec = GroupSpec.model_validate_json(body)
    except ValidationError as error:
        raise invalid(field_problems(error.errors())) from None
    record, replayed = groups.submit(plane, tenant_id, spec, key)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return record
