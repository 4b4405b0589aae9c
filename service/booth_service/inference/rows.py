"""A request as rows to draw, and what makes it impossible to draw."""

import base64
import binascii

from PIL.Image import Image

from booth.contract.photos import PhotoError, open_photo
from booth.contract.serving import DrawRequest
from booth_service.diffusion.batch import Row, Setting
from booth_service.errors import CannotDraw
from booth_service.inference.skeleton import Skeleton


def rows_of(request: DrawRequest) -> list[Row]:
    """One row for each draw. Raises CannotDraw where the picture to start from is none, or no step would be left."""
    image = start_picture(request.image_base64) if request.image_base64 is not None else None
    if image is not None and int(request.num_inference_steps * request.strength) < 1:
        raise CannotDraw(
            f"strength {request.strength:g} of {request.num_inference_steps} steps leaves no step to draw; "
            f"take more steps, or a strength of {1 / request.num_inference_steps:.3g} or more"
        )
    return [Row(each.prompt, each.negative_prompt, each.seed, image, each.edit) for each in request.draws]


def setting_of(request: DrawRequest, row: Row) -> Setting:
    """What the row shares with those it may be sampled beside."""
    return Setting(
        guidance_scale=request.guidance_scale,
        num_inference_steps=request.num_inference_steps,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
        has_negative=bool(row.negative_prompt),
        strength=request.strength if row.image is not None else None,
    )


def start_picture(image_base64: str) -> Image:
    """The picture in RGB, upright. Raises CannotDraw."""
    try:
        return open_photo(base64.b64decode(image_base64, validate=True))
    except (binascii.Error, PhotoError) as error:
        raise CannotDraw(f"the picture to start from cannot be used: {error}") from None


def refuse_size(request: DrawRequest, skeleton: Skeleton) -> None:
    """Raise CannotDraw where the pipeline cannot draw pictures of this size."""
    unit = skeleton.side_unit_px
    for side, pixels in (("width", request.width), ("height", request.height)):
        if pixels % unit:
            near = " or ".join(str(each) for each in (pixels // unit * unit, -(-pixels // unit) * unit) if each)
            raise CannotDraw(f"{side} {pixels} is no multiple of {unit}, as this model needs; take {near}")
