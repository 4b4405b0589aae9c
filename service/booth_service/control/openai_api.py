"""POST /v1/images/generations as OpenAI's API has it, so that clients written for it draw with models of ours."""

import re
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from booth.contract import limits
from booth.contract.base import Request as Asked
from booth.contract.drawing import NegativePrompt, Prompt, SchedulerName
from booth.contract.models import GenerateRequest, Picture
from booth.contract.problems import FieldProblem
from booth.contract.serving import DrawRequest
from booth_service.control import pictures
from booth_service.control.auth import Caller, Here
from booth_service.control.picture_api import drawn
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, invalid

PREFIX = "/v1/images/"
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")

router = APIRouter(prefix=PREFIX.rstrip("/"))


class ImagesRequest(Asked):
    """What the client sends. The last five are ours (`extra_body`); None means: as the base model's recipe says.

    `quality`, `style`, `moderation`, `output_compression` and `user` change nothing here, and are let pass so that code
    which always sends them goes on working. What cannot be had is refused: other formats than PNG, transparency,
    partial pictures.
    """

    prompt: Prompt
    model: Annotated[str, Field(min_length=1, max_length=200)]
    n: Annotated[int, Field(ge=1, le=limits.MAX_IMAGES_PER_CALL)] | None = None
    size: Annotated[str, Field(max_length=20)] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    output_compression: int | None = None
    user: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    negative_prompt: NegativePrompt = ""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] | None = None
    scheduler: SchedulerName = "base"


@router.post("/generations")
async def create_images(asked: ImagesRequest, tenant: Caller, plane: Here, request: Request) -> dict[str, Any]:
    """Pictures by the tenant's model of this id, or by the base model of this name."""
    answer = await drawn(plane, tenant, request, as_ours(asked), partial(_of_either, plane, tenant, asked.model))
    return {
        "created": int(plane.now().timestamp()),
        "background": "opaque",
        "output_format": "png",
        "size": f"{answer.width}x{answer.height}",
        "data": [_data(picture) for picture in answer.pictures],
    }


def as_ours(asked: ImagesRequest) -> GenerateRequest:
    """The same call as our own route takes it. Raises `invalid` for a size that is none."""
    width, height = _sides(asked.size)
    wanted = {
        "prompts": [asked.prompt],
        "num_images": asked.n or 1,
        "seed": asked.seed,
        "negative_prompt": asked.negative_prompt,
        "guidance_scale": asked.guidance_scale,
        "num_inference_steps": asked.num_inference_steps,
        "scheduler": asked.scheduler,
        "width": width,
        "height": height,
        "response_format": "inline" if asked.response_format == "b64_json" else "link",
    }
    return GenerateRequest(**wanted)


def _of_either(plane: Plane, tenant_id: str, name: str, ours: GenerateRequest) -> DrawRequest:
    """What to draw with the tenant's model of this id, else with the base model of this name."""
    try:
        return pictures.of_model(plane, tenant_id, name, ours)
    except ProblemError as error:
        if error.code != "not_found":
            raise
    try:
        return pictures.of_base_model(plane, name, ours)
    except ProblemError as error:
        if error.code == "not_found":
            message = f"There is no model or base model {name!r}."
            remedy = "List what you have: boothctl models, boothctl base-models."
            error.problems = [FieldProblem(field="model", value=repr(name), message=message, remedy=remedy)]
        raise


def _sides(size: str | None) -> tuple[int | None, int | None]:
    if size is None or size == "auto":
        return None, None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise _bad_size(size, "It is no size.", 'Give WIDTHxHEIGHT in pixels, such as "512x512", or "auto".')
    width, height = int(found[1]), int(found[2])
    most = limits.MAX_RESOLUTION_PX
    if not all(8 <= side <= most for side in (width, height)):
        raise _bad_size(size, "A side is too short or too long.", f"Give sides of 8 to {most} pixels.")
    return width, height


def _bad_size(size: str, message: str, remedy: str) -> ProblemError:
    return invalid([FieldProblem(field="size", value=repr(size), message=message, remedy=remedy)])


def _data(picture: Picture) -> dict[str, Any]:
    shown = {"url": picture.url} if picture.url else {"b64_json": picture.png_base64}
    return {**shown, "seed": picture.seed}
