"""Pictures asked of a model or of a base model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from booth.contract import limits
from booth.contract.models import GenerateAnswer, GenerateRequest
from booth.contract.problems import field_problems
from booth.errors import ValidationError
from booth.transport import Transport

if TYPE_CHECKING:
    from PIL.Image import Image

ANSWER_TIMEOUT_S = 900.0  # a full batch of a large model on CPUs takes minutes


@dataclass(frozen=True)
class GeneratedImage:
    """One picture, with all that it takes to draw it again."""

    png: bytes = field(repr=False)
    prompt: str
    seed: int
    guidance_scale: float
    num_inference_steps: int

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
    *,
    num_images: int,
    seed: int | None,
    guidance_scale: float | None,
    num_inference_steps: int | None,
    negative_prompt: str,
) -> list[GeneratedImage]:
    """`num_images` pictures for each prompt, in order; as many calls as the service's limits ask for.

    Raises ValidationError for bad settings, before anything is sent.
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    settings = {
        "num_images": num_images,
        "seed": seed,
        "guidance_scale": guidance_scale,
        "num_inference_steps": num_inference_steps,
        "negative_prompt": negative_prompt,
    }
    try:
        requests = [GenerateRequest(prompts=batch, **settings) for batch in _batches(asked, num_images)]
    except pydantic.ValidationError as error:
        raise ValidationError(field_problems(error.errors())) from None
    return [picture for request in requests for picture in _drawn(transport, path, request)]


def _batches(prompts: list[str], num_images: int) -> Iterator[list[str]]:
    """Prompts in calls of at most MAX_IMAGES_PER_CALL pictures; seeds belong to a prompt, so cuts change nothing."""
    size = max(1, min(limits.MAX_PROMPTS_PER_CALL, limits.MAX_IMAGES_PER_CALL // max(1, num_images)))
    for start in range(0, max(1, len(prompts)), size):
        yield prompts[start : start + size]


def _drawn(transport: Transport, path: str, request: GenerateRequest) -> list[GeneratedImage]:
    answer = transport.post(path, GenerateAnswer, body=request, repeatable=True, timeout_s=ANSWER_TIMEOUT_S)
    return [
        GeneratedImage(
            png=base64.b64decode(picture.png_base64),
            prompt=picture.prompt,
            seed=picture.seed,
            guidance_scale=answer.guidance_scale,
            num_inference_steps=answer.num_inference_steps,
        )
        for picture in answer.pictures
    ]
