"""Cheap pictures of latents that are still being denoised."""

import math
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

PREVIEW_CELLS = 16  # of the longer side: decoding costs as much as a 128 px picture of a VAE that makes 8 px of a cell


@torch.no_grad()
def preview(pipeline: Any, latents: Tensor) -> list[Image]:
    """RGB pictures, one for each row of `latents` (rows, channels, height, width), through the model's own VAE.

    Averaging cells takes out most of the noise, and each row is scaled back to the spread of clean latents, whatever
    the scheduler's noise level is. Draws nothing from any generator and changes neither `latents` nor the VAE's dtype.
    """
    vae = pipeline.vae
    height, width = latents.shape[-2:]
    pool = max(1, math.ceil(max(height, width) / PREVIEW_CELLS))
    small = adaptive_avg_pool2d(latents.float(), (math.ceil(height / pool), math.ceil(width / pool)))
    spread = latents.float().std(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    dtype = vae.dtype
    upcast = vae.config.force_upcast and dtype == torch.float16
    if upcast:
        vae.to(torch.float32)
    try:
        pixels = vae.decode((small / spread / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype)
    images: list[Image] = pipeline.image_processor.postprocess(pixels)
    return images
