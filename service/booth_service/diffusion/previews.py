"""Cheap pictures of latents that are still being denoised."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

PREVIEW_CELLS = 16  # of the longer side: decoding costs as much as a 128 px picture of a VAE that makes 8 px of a cell


def clean_latents(scheduler: Any) -> Callable[[Tensor], Tensor]:
    """A function that makes of a step's noisy latents what the scheduler took the clean ones to be in that step.

    Where it does not say (PNDM) they are the noisy ones, scaled to the spread of clean latents. Changes no step.
    """
    step = scheduler.step
    said: list[Tensor] = []

    @wraps(step)
    def watched(*arguments: Any, **options: Any) -> Any:
        answer = step(*arguments, **options)
        said[:] = [each for each in answer[1:2] if each is not None]
        return answer

    scheduler.step = watched

    def estimate(noisy: Tensor) -> Tensor:
        solver_outputs = getattr(scheduler, "model_outputs", None)  # of DPM-Solver++ and UniPC: clean latents
        if solver_outputs is not None and solver_outputs[-1] is not None:
            clean: Tensor = solver_outputs[-1]
            return clean
        return said[0] if said else noisy / noisy.float().std(dim=(1, 2, 3), keepdim=True).clamp(min=1)

    return estimate


@torch.no_grad()
def preview(pipeline: Any, latents: Tensor) -> list[Image]:
    """RGB pictures, one for each row of `latents` (rows, channels, height, width), through the model's own VAE.

    Cells are averaged first where there are many. Draws nothing from any generator and changes neither `latents` nor
    the VAE's dtype.
    """
    vae = pipeline.vae
    height, width = latents.shape[-2:]
    pool = max(1, math.ceil(max(height, width) / PREVIEW_CELLS))
    small = adaptive_avg_pool2d(latents.float(), (math.ceil(height / pool), math.ceil(width / pool)))
    dtype = vae.dtype
    upcast = vae.config.force_upcast and dtype == torch.float16
    if upcast:
        vae.to(torch.float32)
    try:
        pixels = vae.decode((small / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype)
    images: list[Image] = pipeline.image_processor.postprocess(pixels)
    return images
