"""Pictures asked of a model or of a base model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from booth.contract import limits
from booth.contract.models import GenerateAnswer, GenerateRequest, Picture
from booth.contract.photos import PhotoError, open_photo
from booth.contract.problems import FieldProblem, field_problems
from booth.drawing import OnStep, followed
from booth.errors import ValidationError
from booth.images import read
from booth.subjects import Source
from booth.transport import Transport

if TYPE_CHECKING:
    from PIL.Image import Image

ANSWER_TIMEOUT_S = 900.0  # a full batch of a large model on CPUs takes minutes


@dataclass(frozen=True)
class GeneratedImage:
    """One picture, with all that it takes to draw it again.

    `source` is the picture that an edit changed. `batch_size` rows were sampled together: drawn in a batch of another
    size, the last digits differ.
    """

    png: bytes = field(repr=False)
    prompt: str
    seed: int
    guidance_scale: float
    num_inference_steps: int
    width: int = 0
    height: int = 0
    scheduler: str = "base"
    batch_size: int = 0
    source: GeneratedImage | None = field(default=None, repr=False)

    @cached_property
    def image(self) -> Image:
        """The picture as a PIL image."""
        return opened(self.png)

    def save(self, path: str | Path) -> Path:
        """The picture lies at `path`, in the format that its suffix names; PNG keeps the very bytes."""
        return save(self.png, path)


def opened(png: bytes) -> Image:
    """A PNG file as a PIL image."""
    from PIL import Image

    return Image.open(io.BytesIO(png))


def save(png: bytes, path: str | Path) -> Path:
    """The picture lies at `path`, in the format that its suffix names; PNG keeps the very bytes."""
    target = Path(path)
    if target.suffix.lower() == ".png":
        target.write_bytes(png)
    else:
        opened(png).save(target)
    return target


def draw(
    transport: Transport,
    path: str,
    prompts: str | Sequence[str],
    settings: Mapping[str, Any],
    image: Source | None = None,
    on_step: OnStep | None = None,
) -> list[GeneratedImage]:
    """`settings["num_images"]` pictures for each prompt, in order; as many calls as the service's limits ask for.

    `settings` are fields of GenerateRequest, `image` what drawing starts from. With `on_step` it is told of every
    denoising step. Raises ValidationError for bad settings, before anything is sent.
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    start = None if image is None else start_base64(image)
    try:
        requests = [GenerateRequest(prompts=batch, image=start, **settings) for batch in _batches(asked, settings)]
    except pydantic.ValidationError as error:
        raise ValidationError(field_problems(error.errors())) from None
    num_images = settings["num_images"]
    drawn: list[GeneratedImage] = []
    for request in requests:
        if on_step is None:
            answer = transport.post(path, GenerateAnswer, request, repeatable=True, timeout_s=ANSWER_TIMEOUT_S)
        else:
            answer = followed(transport, path, request, on_step, len(drawn), len(asked) * num_images, ANSWER_TIMEOUT_S)
        drawn += [_generated(picture, answer, request) for picture in answer.pictures]
    return drawn


def start_base64(source: Source) -> bytes:
    """A picture to start from as it is sent, checked as photos are. Raises ValidationError."""
    most = limits.MAX_INIT_IMAGE_BYTES
    try:
        data = read(source)
        if len(data) > most:
            raise PhotoError(
                f"It has {len(data) / 2**20:.1f} MiB.", f"Scale it down: {most // 2**20} MiB are the most."
            )
        open_photo(data)
    except PhotoError as error:
        value = str(source) if isinstance(source, str | Path) else ""
        problem = FieldProblem(field="image", value=value, message=error.message, remedy=error.remedy)
        raise ValidationError([problem]) from None
    return base64.b64encode(data)


def _batches(prompts: list[str], settings: Mapping[str, Any]) -> Iterator[list[str]]:
    """Prompts in calls of as many pictures as the limits allow; seeds belong to a prompt, so cuts change nothing."""
    num_images = max(1, settings["num_images"])
    most = min(limits.MAX_PROMPTS_PER_CALL, limits.MAX_IMAGES_PER_CALL // num_images)
    width, height = settings.get("width"), settings.get("height")
    if width and height:
        each = width * height * num_images * (1 if settings.get("edit") is None else 2)
        most = min(most, limits.MAX_PIXELS_PER_CALL // each)
    size = max(1, most)
    for start in range(0, max(1, len(prompts)), size):
        yield prompts[start : start + size]


def _generated(picture: Picture, answer: GenerateAnswer, request: GenerateRequest) -> GeneratedImage:
    made = GeneratedImage(
        png=base64.b64decode(picture.png_base64),
        prompt=picture.prompt,
        seed=picture.seed,
        guidance_scale=answer.guidance_scale,
        num_inference_steps=answer.num_inference_steps,
        width=answer.width,
        height=answer.height,
        scheduler=answer.scheduler,
        batch_size=picture.batch_size,
    )
    if picture.source_png_base64 is None or request.edit is None:
        return made
    source = replace(made, png=base64.b64decode(picture.source_png_base64), prompt=request.edit.source_prompt)
    return replace(made, source=source)
