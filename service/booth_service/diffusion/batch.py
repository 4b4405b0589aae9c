"""One batch of pictures from one pipeline: rows of a padded size, each with a seed and a generator of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image, Resampling
from PIL.ImageOps import fit

from booth.contract.drawing import PromptEdit, SchedulerName
from booth_service.diffusion.batch_pipeline import pipeline_of_batch
from booth_service.diffusion.image_prompt import ImagePrompt, image_prompted
from booth_service.diffusion.previews import clean_latents, preview
from booth_service.diffusion.prompt_to_prompt import Editor, edit_of, edited_attention
from booth_service.errors import CannotDraw


@dataclass(frozen=True)
class Setting:
    """What all rows of a batch share. `strength` is None where drawing starts from noise alone.

    `has_negative`: some families guide away from zeros where there is no negative prompt, and a pipeline decides that
    for a whole batch.
    """

    guidance_scale: float
    num_inference_steps: int
    width: int
    height: int
    scheduler: SchedulerName = "base"
    has_negative: bool = False
    strength: float | None = None


@dataclass(frozen=True)
class Row:
    """One picture to draw, from its own seed."""

    prompt: str
    negative_prompt: str
    seed: int
    image: Image | None = None
    edit: PromptEdit | None = None

    @property
    def places(self) -> int:
        """Rows of the device's batch that it takes: an edit draws its source beside it."""
        return 1 if self.edit is None else 2


@dataclass(frozen=True)
class Step:
    """Denoising step `done` of `total` is over. `preview` decodes cheap pictures, one for each row, when called."""

    done: int
    total: int
    preview: Callable[[], list[Image]]


@dataclass(frozen=True)
class Drawing:
    """A finished row: an RGB picture, and that of the source prompt where the row is an edit."""

    image: Image
    source: Image | None = None


OnStep = Callable[[Step], bool]
"""Called after every denoising step; False stops the batch there."""


class _Stopped(Exception):
    """Leaves a pipeline's loop at once; its own interruption would still decode what is not finished."""


def sample_batch(
    pipeline: Any,
    rows: list[Row],
    setting: Setting,
    *,
    places: int,
    on_step: OnStep | None = None,
    image_prompt: ImagePrompt | None = None,
) -> list[Drawing] | None:
    """One drawing for each row, or None where `on_step` stopped the batch.

    The batch is padded to `places` rows: kernels differ between batch sizes, so a picture would otherwise depend on how
    many neighbours it has. At one size its bits depend on its own row alone. `pipeline` is as it was afterwards, also
    where this raises. With an `image_prompt` all rows look at its photo too. Raises CannotDraw where the model cannot
    draw what is asked.
    """
    if image_prompt is not None and any(row.edit for row in rows):
        raise CannotDraw(
            "edits put attention maps of one picture into another, and this model's attention (IP-Adapter) reads a "
            "photo beside the prompt: draw without `edit`, or edit with a model that was trained"
        )
    seats, shown = _seats(rows, places)
    with pipeline_of_batch(pipeline, setting.scheduler, img2img=setting.strength is not None) as live:
        editor = _editor(live, rows, shown, setting, places)
        clean = clean_latents(live.scheduler)

        def after_step(_live: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latents = editor.after_step(tensors["latents"]) if editor else tensors["latents"]
            step = Step(index + 1, live.num_timesteps, lambda: preview(live, clean(latents)[shown]))
            if on_step is not None and not on_step(step):
                raise _Stopped
            return {"latents": latents}

        try:
            with image_prompted(live, image_prompt), edited_attention(live.unet, editor):
                answer = live(
                    prompt=[seat.prompt for seat in seats],
                    negative_prompt=[seat.negative_prompt for seat in seats] if setting.has_negative else None,
                    generator=[torch.Generator("cpu").manual_seed(seat.seed) for seat in seats],
                    guidance_scale=setting.guidance_scale,
                    num_inference_steps=setting.num_inference_steps,
                    callback_on_step_end=after_step,
                    ip_adapter_image_embeds=image_prompt and image_prompt.embeds_of(live, setting.guidance_scale),
                    **_start(seats, setting),
                )
        except _Stopped:
            return None
    pictures = answer.images
    return [
        Drawing(pictures[place], pictures[place - 1] if row.edit else None)
        for row, place in zip(rows, shown, strict=True)
    ]


def _seats(rows: list[Row], places: int) -> tuple[list[Row], list[int]]:
    """What every place of the batch draws, and at which place each row is. An edit's source is at the place before."""
    seats: list[Row] = []
    shown = []
    for row in rows:
        if row.edit is not None:
            seats.append(replace(row, prompt=row.edit.source_prompt, edit=None))
        shown.append(len(seats))
        seats.append(row)
    if not rows or len(seats) > places:
        raise ValueError(f"{len(rows)} rows that take {len(seats)} places do not fit a batch of {places}")
    return [*seats, *[seats[-1]] * (places - len(seats))], shown


def _editor(live: Any, rows: list[Row], shown: list[int], setting: Setting, places: int) -> Editor | None:
    """The rows' edits, or None where there are none."""
    size = (setting.height // live.vae_scale_factor, setting.width // live.vae_scale_factor)
    tokenizers = [getattr(live, name) for name in ("tokenizer", "tokenizer_2") if hasattr(live, name)]
    edits = [
        edit_of(tokenizers, row.prompt, row.edit, place - 1, size)
        for row, place in zip(rows, shown, strict=True)
        if row.edit is not None
    ]
    return Editor(edits, places, size, lambda: live.num_timesteps) if edits else None


def _start(rows: list[Row], setting: Setting) -> dict[str, Any]:
    """Where drawing starts from: noise of a size, or each row's picture, cut to that size about its middle."""
    size = (setting.width, setting.height)
    if setting.strength is None:
        return {"width": setting.width, "height": setting.height}
    if int(setting.num_inference_steps * setting.strength) < 1:
        raise CannotDraw(
            f"strength {setting.strength} of {setting.num_inference_steps} steps is less than one step: raise "
            f"either, to a product of 1 or more"
        )
    images = [fit(row.image.convert("RGB"), size, Resampling.LANCZOS) for row in rows if row.image is not None]
    return {"image": images, "strength": setting.strength}
