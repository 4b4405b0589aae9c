"""Pictures asked for: whose model it is, and what Serve is to draw, with every value as it will be used."""

import base64
import secrets

import anyio.to_thread

from booth.contract import limits
from booth.contract.drawing import PromptEdit
from booth.contract.jobs import Params
from booth.contract.models import GenerateRequest, Recipe
from booth.contract.photos import PhotoError
from booth.contract.problems import FieldProblem
from booth.contract.serving import Draw, DrawRequest, ModelRef
from booth_service.control import base_models, picture_sides, serving
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.control.records import BaseModel
from booth_service.data.images import start_picture

DECODERS = anyio.CapacityLimiter(2)
"""Pictures to start from that are decoded at a time. The largest, 50 transparent megapixels, takes 800 MB for that."""


def of_model(plane: Plane, tenant_id: str, model_id: str, asked: GenerateRequest) -> DrawRequest:
    """What to draw with a tenant's model, but for the picture to start from. Raises not_found, or `invalid` naming all
    that is wrong."""
    with plane.database.read() as session:
        model = serving.owned_model(session, tenant_id, model_id)
        base = session.get_one(BaseModel, model.base_model_id)
    resolution = Params.model_validate(model.params).resolution
    return _draw_request(plane, serving.model_ref(base, model), asked, Recipe.model_validate(base.recipe), resolution)


def of_base_model(plane: Plane, name: str, asked: GenerateRequest) -> DrawRequest:
    """What to draw with a base model alone, but for the picture to start from. Raises as `of_model` does."""
    with plane.database.read() as session:
        base = base_models.named(session, name)
    recipe = Recipe.model_validate(base.recipe)
    return _draw_request(plane, serving.model_ref(base), asked, recipe, recipe.resolution)


async def with_start(wanted: DrawRequest, asked: GenerateRequest) -> DrawRequest:
    """With the picture to start from, where there is one, checked and brought to size in a thread of a few. Raises
    `invalid`."""
    if asked.image is None:
        return wanted
    try:
        png = await anyio.to_thread.run_sync(_start, asked.image, (wanted.width, wanted.height), limiter=DECODERS)
    except PhotoError as error:
        size = f"{len(asked.image)} bytes"
        raise invalid([FieldProblem(field="image", value=size, message=error.message, remedy=error.remedy)]) from None
    return wanted.model_copy(update={"image_base64": base64.b64encode(png).decode()})


def problems_of(asked: GenerateRequest, width: int, height: int) -> list[FieldProblem]:
    """What is wrong with a call for pictures of this size, as far as it can be told without the model."""
    found: list[FieldProblem | None] = [
        _too_many(asked),
        _too_large(asked, width, height),
        _strength_of_nothing(asked),
        *(_no_difference(asked.edit, prompt, place) for place, prompt in enumerate(asked.prompts)),
    ]
    return [problem for problem in found if problem is not None]


def _draw_request(plane: Plane, ref: ModelRef, asked: GenerateRequest, recipe: Recipe, resolution: int) -> DrawRequest:
    width, height = asked.width or resolution, asked.height or resolution
    problems = _side_problems(plane, ref, asked) + problems_of(asked, width, height)
    if problems:
        raise invalid(problems)
    scale, steps = asked.guidance_scale, asked.num_inference_steps
    settings = {} if asked.strength is None else {"strength": asked.strength}
    return DrawRequest(
        model=ref,
        draws=_draws(asked),
        guidance_scale=recipe.guidance_scale if scale is None else scale,
        num_inference_steps=recipe.num_inference_steps if steps is None else steps,
        width=width,
        height=height,
        scheduler=asked.scheduler,
        preview_interval_steps=asked.preview_interval_steps,
        timeout_s=plane.settings.serving_timeout_s,
        **settings,
    )


def _draws(asked: GenerateRequest) -> list[Draw]:
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    return [
        Draw(prompt=prompt, negative_prompt=asked.negative_prompt, seed=(seed + number) % 2**63, edit=asked.edit)
        for prompt in asked.prompts
        for number in range(asked.num_images)
    ]


def _start(data: bytes, size: tuple[int, int]) -> bytes:
    most = limits.MAX_INIT_IMAGE_BYTES
    if len(data) > most:
        raise PhotoError(f"The file has {len(data) / 2**20:.0f} MiB.", f"Send at most {most // 2**20} MiB.")
    return start_picture(data, size)


def _side_problems(plane: Plane, ref: ModelRef, asked: GenerateRequest) -> list[FieldProblem]:
    given = {name: side for name, side in (("width", asked.width), ("height", asked.height)) if side is not None}
    if not given:
        return []
    multiple = picture_sides.side_multiple_px(plane.store, ref.base_files)
    return [
        problem for name, side in given.items() for problem in picture_sides.resolution_problems(side, multiple, name)
    ]


def _too_many(asked: GenerateRequest) -> FieldProblem | None:
    total = len(asked.prompts) * asked.num_images
    if total <= limits.MAX_IMAGES_PER_CALL:
        return None
    message = f"{len(asked.prompts)} prompts times num_images is {total} pictures."
    remedy = f"Ask for at most {limits.MAX_IMAGES_PER_CALL} pictures in one call."
    return FieldProblem(field="num_images", value=str(asked.num_images), message=message, remedy=remedy)


def _too_large(asked: GenerateRequest, width: int, height: int) -> FieldProblem | None:
    drawn = len(asked.prompts) * asked.num_images * (1 if asked.edit is None else 2)
    most = limits.MAX_PIXELS_PER_CALL
    if drawn * width * height <= most:
        return None
    message = f"{drawn} pictures of {width} x {height} are {drawn * width * height / 1e6:.1f} megapixels."
    remedy = f"Ask for fewer or smaller ones: {most / 1e6:.1f} megapixels are the most of one call."
    return FieldProblem(field="width", value=str(width), message=message, remedy=remedy)


def _strength_of_nothing(asked: GenerateRequest) -> FieldProblem | None:
    if asked.strength is None or asked.image is not None:
        return None
    message = "Strength says how far to go from a given picture, and none is given."
    return FieldProblem(field="strength", value=str(asked.strength), message=message, remedy="Give image, or leave it.")


def _no_difference(edit: PromptEdit | None, prompt: str, place: int) -> FieldProblem | None:
    if edit is None or prompt != edit.source_prompt or any(factor != 1 for factor in edit.words.values()):
        return None
    message = "The prompt is edit.source_prompt, and edit.words changes no word's weight: there is nothing to edit."
    remedy = "Change a word of the prompt, or give words with factors other than 1."
    return FieldProblem(field=f"prompts.{place}", value=repr(prompt), message=message, remedy=remedy)
