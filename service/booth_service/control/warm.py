"""Warm hand-over: a replica holds a model in memory before its owner asks for a picture. Never more than a try."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from booth.contract.serving import WARM_PATH, ModelRef
from booth_service.control import serving
from booth_service.control.plane import Plane
from booth_service.control.records import BaseModel, Model, Serving, ServingState
from booth_service.control.sharing import STACK

logger = logging.getLogger(__name__)


@contextmanager
def handed_over(plane: Plane, model: ModelRef) -> Iterator[None]:
    """A replica holds the model when the block begins, where one is up; while the block runs, no replica takes a model
    that SQL does not show yet for a deleted one."""
    assert model.manifest_sha256 is not None, "base models are not handed over"
    plane.handed_over.add(model.manifest_sha256)
    try:
        if _is_serving(plane):
            warm(plane, model, plane.settings.serving_warm_s)
        yield
    finally:
        plane.handed_over.discard(model.manifest_sha256)


def newest(plane: Plane, models: list[Model]) -> None:
    """As many of these, in their order, as fit a replica's memory and `serving_warm_s` lie in it."""
    deadline = time.monotonic() + plane.settings.serving_warm_s
    left_bytes = plane.settings.model_cache_bytes
    for model in models:
        left_bytes -= model.bytes
        if left_bytes < 0 or not warm(plane, _ref(plane, model), deadline - time.monotonic()):
            return


def warm(plane: Plane, model: ModelRef, within_s: float) -> bool:
    """Whether a replica holds the model now."""
    if within_s <= 0:
        return False
    began = time.monotonic()
    try:
        answer = plane.serve_now.post(
            serving.url(plane, WARM_PATH),
            content=model.model_dump_json(),
            headers=serving.headers(plane, model.routing_key),
            timeout=httpx2.Timeout(within_s, connect=5),
        )
    except httpx2.HTTPError as error:
        logger.warning("model %s was not warmed: %s", model.model_id, type(error).__name__)
        return False
    took_s = time.monotonic() - began
    logger.info("model %s warmed: %d after %.1f s", model.model_id, answer.status_code, took_s)
    return answer.status_code == 204


def _is_serving(plane: Plane) -> bool:
    with plane.database.read() as session:
        row = session.get(Serving, STACK)
    return row is None or row.state is ServingState.SERVING


def _ref(plane: Plane, model: Model) -> ModelRef:
    with plane.database.read() as session:
        base = session.get_one(BaseModel, model.base_model_id)
    return serving.model_ref(base, model)
