"""Class images and samples: pictures of one setting, each from its own seed, in batches of one fixed size."""

from typing import Any

from PIL.Image import Image

from booth.contract.drawing import SchedulerName
from booth_service.diffusion.batch import Row, Setting, sample_batch


def draw(
    pipeline: Any,
    prompts: list[str],
    negative_prompts: list[str],
    seeds: list[int],
    *,
    guidance_scale: float,
    num_inference_steps: int,
    resolution: int,
    batch_size: int,
    scheduler: SchedulerName = "base",
) -> list[Image]:
    """One RGB picture for each prompt and seed; every batch has `batch_size` rows."""
    images: dict[int, Image] = {}
    for wanted in batches(negative_prompts, batch_size):
        rows = [Row(prompts[place], negative_prompts[place], seeds[place]) for place in wanted]
        setting = Setting(
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            width=resolution,
            height=resolution,
            scheduler=scheduler,
            has_negative=bool(rows[0].negative_prompt),
        )
        drawings = sample_batch(pipeline, rows, setting, places=batch_size)
        images.update((place, drawing.image) for place, drawing in zip(wanted, drawings or [], strict=True))
    return [images[place] for place in range(len(prompts))]


def batches(negative_prompts: list[str], batch_size: int) -> list[list[int]]:
    """The rows in groups of at most `batch_size`; rows without a negative prompt keep to themselves.

    Some families (Stable Diffusion XL) guide away from zeros instead of an empty prompt's embedding, and a pipeline
    decides that for a whole batch.
    """
    without = [row for row, text in enumerate(negative_prompts) if not text]
    with_one = [row for row, text in enumerate(negative_prompts) if text]
    return [rows[i : i + batch_size] for rows in (without, with_one) for i in range(0, len(rows), batch_size)]
