"""The Serve application as the control plane speaks to it: whose model it is, and what Serve is to forget."""

import asyncio
import logging

import httpx2
from sqlalchemy.orm import Session

from booth.contract.serving import FORGET_PATH, ROUTING_HEADER, SECRET_HEADER, ForgetRequest, ModelRef
from booth_service.control.plane import Plane
from booth_service.control.problems import not_found
from booth_service.control.records import BaseModel, Model
from booth_service.control.views import stored_files

logger = logging.getLogger(__name__)

TIMEOUT = httpx2.Timeout(600, connect=5)
FORGET_PAUSES_S = (0.0, 1.0, 10.0)  # before each try


def owned_model(session: Session, tenant_id: str, model_id: str) -> Model:
    """The tenant's model; not_found for anything else, deleted ones included."""
    model = session.get(Model, model_id)
    if model is None or model.tenant_id != tenant_id or model.deleted_at is not None:
        raise not_found("model", model_id)
    return model


def model_ref(base: BaseModel, model: Model | None = None) -> ModelRef:
    """What Serve is told of a published model, or of a base model alone."""
    ref = ModelRef(model_id=base.id, base_model=base.name, base_files=stored_files(base.files))
    if model is None:
        return ref
    manifest = {"manifest_key": model.manifest_key, "manifest_sha256": model.manifest_sha256}
    return ref.model_copy(update={"model_id": model.id, **manifest})


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


def headers(plane: Plane, routing_key: str = "") -> dict[str, str]:
    """What Serve takes calls with, and where they are for one model, the key that leads them to its replica."""
    routed = {ROUTING_HEADER: routing_key} if routing_key else {}
    secret = plane.settings.stack_secret.get_secret_value()
    return {SECRET_HEADER: secret, "Content-Type": "application/json", **routed}
