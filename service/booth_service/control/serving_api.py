"""Serve's HTTP API at the control plane: replicas ask which of their models were deleted, with the stack's secret."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from sqlalchemy import select

from booth.contract.serving import DELETED_PATH, SECRET_HEADER, HeldModels
from booth_service.control.auth import Here
from booth_service.control.problems import ProblemError
from booth_service.control.records import Model


def check_stack(plane: Here, secret: Annotated[str, Header(alias=SECRET_HEADER)] = "") -> None:
    """The request comes from the stack itself; unauthenticated otherwise."""
    if not hmac.compare_digest(secret.encode(), plane.settings.stack_secret.get_secret_value().encode()):
        raise ProblemError("unauthenticated", "The stack's secret is missing or wrong.")


router = APIRouter(dependencies=[Depends(check_stack)])


@router.post(DELETED_PATH)
def find_deleted(held: HeldModels, plane: Here) -> HeldModels:
    """Those of the held models that nobody may draw with any more."""
    asked = held.manifest_sha256s
    not_yet = set(plane.handed_over)  # before SQL is asked: what leaves this set is in SQL then
    live = select(Model.manifest_sha256).where(Model.manifest_sha256.in_(asked), Model.deleted_at.is_(None))
    with plane.database.read() as session:
        kept = set(session.scalars(live)) | not_yet
    return HeldModels(manifest_sha256s=[each for each in asked if each not in kept])
