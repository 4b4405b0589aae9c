"""Drawing pictures, each from its own seed, in batches of one fixed size."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL.Image import Image

from booth.contract.models import ClassScheduler


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
) -> list[Image]:
    """One RGB picture for each prompt and seed.

    Every batch has `batch_size` rows, filled up with copies: kernels differ between batch sizes, so a picture would
    otherwise depend on how many neighbours it has.
    """
    images: dict[int, Image] = {}
    for wanted in batches(negative_prompts, batch_size):
        rows = [*wanted, *[wanted[-1]] * (batch_size - len(wanted))]
        answer = pipeline(
            prompt=[prompts[row] for row in rows],
            negative_prompt=[negative_prompts[row] for row in rows] if negative_prompts[rows[0]] else None,
            generator=[torch.Generator("cpu").manual_seed(seeds[row]) for row in rows],
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            height=resolution,
            width=resolution,
        )
        images.update(zip(wanted, answer.images, strict=False))
    return [images[row] for row in range(len(prompts))]


def batches(negative_prompts: list[str], batch_size: int) -> list[list[int]]:
    """The rows in groups of at most `batch_size`; rows without a negative prompt keep to themselves.

    Some families (Stable Diffusion XL) guide away from zeros instead of an empty prompt's embedding, and a pipeline
    decides that for a whole batch.
    """
    without = [row for row, text in enumerate(negative_prompts) if not text]
    with_one = [row for row, text in enumerate(negative_prompts) if text]
    return [rows[i : i + batch_size] for rows in (without, with_one) for i in range(0, len(rows), batch_size)]


def use_scheduler(pipeline: Any, name: ClassScheduler) -> None:
    """The pipeline draws with this scheduler, with the betas and the prediction type of its own; "base" is its own."""
    config = pipeline.scheduler.config
    if name == "ddim":
        pipeline.scheduler = DDIMScheduler.from_config(config)
    elif name == "dpmsolver++":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
