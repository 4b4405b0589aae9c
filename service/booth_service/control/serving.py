"""The Serve application as the control plane speaks to it: whose model it is, and what Serve is to forget."""

import asyncio
import logging

import httpx2
from sqlalchemy.orm import Session

from booth.contract.serving import FORGET_PATH, SECRET_HEADER, ForgetRequest
from booth_service.control.plane import Plane
from booth_service.control.problems import not_found
from booth_service.control.records import Model

logger = logging.getLogger(__name__)

TIMEOUT = httpx2.Timeout(600, connect=5)
FORGET_PAUSES_S = (0.0, 1.0, 10.0)  # before each try


def owned_model(session: Session, tenant_id: str, model_id: str) -> Model:
    """The tenant's model; not_found for anything else, deleted ones included."""
    model = session.get(Model, model_id)
    if model is None or model.tenant_id != tenant_id or model.deleted_at is not None:
        raise not_found("model", model_id)
    return model


async def forget(plane: Plane, manifest_sha256: str) -> None:
    """Serve keeps no copy of a deleted model, where it can be told: nobody can ask for the model in any case."""
    body = ForgetRequest(manifest_sha256=manifest_sha256).model_dump_json()
    for pause_s in FORGET_PAUSES_S:
        await asyncio.sleep(pause_s)
        try:
            response = await plane.serve.post(
                url(plane, FORGET_PATH), content=body, headers=headers(plane), timeout=TIMEOUT
            )
        except httpx2.TransportError as error:
            logger.warning("inference was not told to forget %s: %s", manifest_sha256, type(error).__name__)
            continue
        if response.status_code not in (429, 503):
            return


def url(plane: Plane, path: str) -> str:
    """Where Serve takes such a call."""
    return plane.settings.serve_url.rstrip("/") + path


def headers(plane: Plane) -> dict[str, str]:
    """What Serve takes calls with."""
    return {SECRET_HEADER: plane.settings.stack_secret.get_secret_value(), "Content-Type": "application/json"}
