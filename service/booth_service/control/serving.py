"""Pictures: whose model it is and what is drawn are decided here; the Serve application draws."""

import asyncio
import logging
import secrets

import httpx2
from pydantic import ValidationError
from sqlalchemy.orm import Session

from booth.contract.jobs import Params
from booth.contract.limits import MAX_IMAGES_PER_CALL
from booth.contract.models import GenerateAnswer, GenerateRequest, Picture, Recipe
from booth.contract.problems import FieldProblem
from booth.contract.serving import (
    FORGET_PATH,
    ROUTING_HEADER,
    SECRET_HEADER,
    Draw,
    DrawAnswer,
    DrawRequest,
    ForgetRequest,
    ModelRef,
)
from booth_service.control import base_models
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, invalid, not_found, unavailable
from booth_service.control.records import BaseModel, Model
from booth_service.control.sharing import require_serving
from booth_service.control.views import stored_files

logger = logging.getLogger(__name__)

TIMEOUT_S = 600.0
TIMEOUT = httpx2.Timeout(TIMEOUT_S, connect=5)
FORGET_PAUSES_S = (0.0, 1.0, 10.0)  # before each try


def owned_model(session: Session, tenant_id: str, model_id: str) -> Model:
    """The tenant's model; not_found for anything else, deleted ones included."""
    model = session.get(Model, model_id)
    if model is None or model.tenant_id != tenant_id or model.deleted_at is not None:
        raise not_found("model", model_id)
    return model


def of_model(plane: Plane, tenant_id: str, model_id: str, asked: GenerateRequest) -> DrawRequest:
    """What to draw with a tenant's model."""
    with plane.database.read() as session:
        model = owned_model(session, tenant_id, model_id)
        require_serving(session, tenant_id)
        base = session.get_one(BaseModel, model.base_model_id)
    ref = ModelRef(
        model_id=model.id,
        base_model=base.name,
        base_files=stored_files(base.files),
        manifest_key=model.manifest_key,
        manifest_sha256=model.manifest_sha256,
    )
    return _draw_request(ref, asked, Recipe.model_validate(base.recipe), Params.model_validate(model.params).resolution)


def of_base_model(plane: Plane, tenant_id: str, name: str, asked: GenerateRequest) -> DrawRequest:
    """What to draw with a base model alone."""
    with plane.database.read() as session:
        base = base_models.named(session, name)
        require_serving(session, tenant_id)
    recipe = Recipe.model_validate(base.recipe)
    ref = ModelRef(model_id=base.id, base_model=base.name, base_files=stored_files(base.files))
    return _draw_request(ref, asked, recipe, recipe.resolution)


async def draw(plane: Plane, request: DrawRequest) -> GenerateAnswer:
    """The pictures. Raises busy, unavailable or internal, as Serve is."""
    try:
        headers = _headers(plane) | {ROUTING_HEADER: request.model.routing_key}
        response = await plane.serve.post(
            plane.settings.serve_url, content=request.model_dump_json(), headers=headers, timeout=TIMEOUT
        )
    except httpx2.TimeoutException as error:
        raise unavailable("Inference did not answer in time.", type(error).__name__, retry_after_s=30) from error
    except httpx2.TransportError as error:
        raise unavailable("Inference is not reachable.", type(error).__name__) from error
    if response.status_code != 200:
        logger.warning("inference answered %d: %s", response.status_code, response.text[:500])
        raise _refusal(response)
    try:
        drawn = DrawAnswer.model_validate_json(response.content).pictures
        pictures = [
            Picture(png_base64=one.png_base64, prompt=each.prompt, seed=each.seed, batch_size=one.batch_size)
            for one, each in zip(drawn, request.draws, strict=True)
        ]
    except (ValidationError, ValueError) as error:
        raise unavailable("Inference gave an answer that cannot be read.") from error
    return GenerateAnswer(
        pictures=pictures,
        guidance_scale=request.guidance_scale,
        num_inference_steps=request.num_inference_steps,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
    )


async def forget(plane: Plane, manifest_sha256: str) -> None:
    """Serve keeps no copy of a deleted model, where it can be told: nobody can ask for the model in any case."""
    body = ForgetRequest(manifest_sha256=manifest_sha256).model_dump_json()
    url = plane.settings.serve_url.rstrip("/") + FORGET_PATH
    for pause_s in FORGET_PAUSES_S:
        await asyncio.sleep(pause_s)
        try:
            response = await plane.serve.post(url, content=body, headers=_headers(plane), timeout=TIMEOUT)
        except httpx2.TransportError as error:
            logger.warning("inference was not told to forget %s: %s", manifest_sha256, type(error).__name__)
            continue
        if response.status_code not in (429, 503):
            return


def _headers(plane: Plane) -> dict[str, str]:
    return {SECRET_HEADER: plane.settings.stack_secret.get_secret_value(), "Content-Type": "application/json"}


def _draw_request(ref: ModelRef, asked: GenerateRequest, recipe: Recipe, resolution: int) -> DrawRequest:
    total = len(asked.prompts) * asked.num_images
    if total > MAX_IMAGES_PER_CALL:
        message = f"{len(asked.prompts)} prompts times num_images is {total} pictures."
        remedy = f"Ask for at most {MAX_IMAGES_PER_CALL} pictures in one call."
        raise invalid([FieldProblem(field="num_images", value=str(asked.num_images), message=message, remedy=remedy)])
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    draws = [
        Draw(prompt=prompt, negative_prompt=asked.negative_prompt, seed=(seed + number) % 2**63)
        for prompt in asked.prompts
        for number in range(asked.num_images)
    ]
    scale, steps = asked.guidance_scale, asked.num_inference_steps
    return DrawRequest(
        model=ref,
        draws=draws,
        guidance_scale=recipe.guidance_scale if scale is None else scale,
        num_inference_steps=recipe.num_inference_steps if steps is None else steps,
        width=resolution if asked.width is None else asked.width,
        height=resolution if asked.height is None else asked.height,
        scheduler=asked.scheduler,
        timeout_s=TIMEOUT_S,
    )


def _refusal(response: httpx2.Response) -> ProblemError:
    wait = response.headers.get("Retry-After", "")
    retry_after_s = int(wait) if wait.isdigit() else 5
    if response.status_code == 429:
        return ProblemError("busy", "Inference is busy.", remedy="Try again shortly.", retry_after_s=retry_after_s)
    if response.status_code in (404, 502, 503, 504):  # 404: Serve is up, the application is not deployed yet
        return unavailable("Inference is not available.", f"It answered {response.status_code}.", retry_after_s)
    return ProblemError(
        "internal", "Inference failed.", f"It answered {response.status_code}.", "Report the request id."
    )
