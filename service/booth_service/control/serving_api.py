"""Serve's HTTP API at the control plane: replicas ask which of their models were deleted, with the stack's secret."""

import hmac
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header
from sqlalchemy import select

from booth.contract.serving import DELETED_PATH, SECRET_HEADER, HeldModels
from booth_service.control.auth import Here
from booth_service.control.problems import ProblemError
from booth_service.control.records import Model

SETTLED_AFTER_S = 120.0


def check_stack(plane: Here, secret: Annotated[str, Header(alias=SECRET_HEADER)] = "") -> None:
    """The request comes from the stack itself; unauthenticated otherwise."""
    if not hmac.compare_digest(secret.encode(), plane.settings.stack_secret.get_secret_value().encode()):
        raise ProblemError("unauthenticated", "The stack's secret is missing or wrong.")


router = APIRouter(dependencies=[Depends(check_stack)])


@router.post(DELETED_PATH)
def find_deleted(held: HeldModels, plane: Here) -> HeldModels:
    """Those of the held models that nobody may draw with any more.

    A model that SQL does not know was deleted and swept, or is about to be published: this process knows the latter,
    or, where it has begun anew meanwhile, its driver reports it again.
    """
    asked = held.manifest_sha256s
    not_yet = set(plane.handed_over)  # before SQL is asked: what leaves this set is in SQL then
    with plane.database.read() as session:
        rows = select(Model.manifest_sha256, Model.deleted_at).where(Model.manifest_sha256.in_(asked))
        known = {sha256: deleted_at is not None for sha256, deleted_at in session.execute(rows)}
    is_settled = time.monotonic() - plane.began_s > SETTLED_AFTER_S
    gone = [each for each in asked if known.get(each, is_settled and each not in not_yet)]
    return HeldModels(manifest_sha256s=gone)
