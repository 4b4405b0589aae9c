"""Drawing pictures, each from its own seed, in batches of one fixed size."""

from typing import Any

import torch
from PIL.Image import Image


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

    Every batch has `batch_size` rows, the last one filled up with copies: kernels differ between batch sizes, so a
    picture would otherwise depend on how many neighbours it has.
    """
    images: list[Image] = []
    for start in range(0, len(prompts), batch_size):
        wanted = range(start, min(start + batch_size, len(prompts)))
        rows = [*wanted, *[wanted[-1]] * (batch_size - len(wanted))]
        answer = pipeline(
            prompt=[prompts[row] for row in rows],
            negative_prompt=[negative_prompts[row] for row in rows] if guidance_scale > 1 else None,
            generator=[torch.Generator("cpu").manual_seed(seeds[row]) for row in rows],
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            height=resolution,
            width=resolution,
        )
        images.extend(answer.images[: len(wanted)])
    return images
