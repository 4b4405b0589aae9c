"""Pictures on their way: every denoising step, with previews, as server-sent events."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from booth.contract.models import GenerateAnswer, GenerateEvent, GenerateRequest, Picture
from booth.contract.problems import Problem
from booth.errors import APIConnectionError, from_problem
from booth.transport import Transport

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class DrawingProgress:
    """Denoising step `step` of `total_steps` is done for the pictures at `places` (from 0) of all `num_pictures`."""

    step: int
    total_steps: int
    places: tuple[int, ...]
    num_pictures: int
    preview_pngs: tuple[bytes, ...] = field(default=(), repr=False)

    @cached_property
    def previews(self) -> list[Image]:
        """A cheap picture for each of `places` where previews were asked for and one is due; else none. The last step
        has none: the pictures themselves follow it."""
        from PIL import Image

        return [Image.open(io.BytesIO(png)) for png in self.preview_pngs]


OnStep = Callable[[DrawingProgress], None]


def followed(
    transport: Transport,
    path: str,
    request: GenerateRequest,
    on_step: OnStep,
    first_place: int,
    num_pictures: int,
    timeout_s: float,
) -> GenerateAnswer:
    """The answer to a call whose steps `on_step` is told of; its pictures begin at `first_place` of all.

    Raises what the service says, and APIConnectionError where it breaks off.
    """
    pictures: dict[int, Picture] = {}
    with transport.stream(path, GenerateEvent, request, timeout_s) as events:
        for event in events:
            if event.kind == "step":
                on_step(_progress(event, first_place, num_pictures))
            elif event.picture is not None:
                pictures[event.places[0]] = event.picture
            elif event.problem is not None:
                raise from_problem(event.problem)
            elif event.answer is not None and len(pictures) == len(request.prompts) * request.num_images:
                return event.answer.model_copy(update={"pictures": [pictures[place] for place in sorted(pictures)]})
    title = f"{transport.base_url} broke off before all pictures had come"
    raise APIConnectionError(Problem(code="unavailable", title=title, remedy="Try again.", status=0))


def _progress(event: GenerateEvent, first_place: int, num_pictures: int) -> DrawingProgress:
    return DrawingProgress(
        step=event.step,
        total_steps=event.total_steps,
        places=tuple(first_place + place for place in event.places),
        num_pictures=num_pictures,
        preview_pngs=tuple(base64.b64decode(preview) for preview in event.previews),
    )
