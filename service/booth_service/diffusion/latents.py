"""Pictures to latent moments and back to samples."""

# N = pictures;  H, W = pixels;  C, h, w = latent channels and cells

from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor


def to_pixels(image: Image) -> Tensor:
    """An RGB picture as (3, H, W) fp32 in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


@torch.no_grad()
def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Mean and standard deviation of each picture's posterior: (N, 3, H, W) in [-1, 1] -> (N, 2, C, h, w) fp32."""
    posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    return torch.stack([posterior.mean, posterior.std], dim=1).float()


def encode_moments(vae: Any, image: Image, device: torch.device) -> Tensor:
    """The same of one picture, (2, C, h, w) on the CPU.

    Cached once for a job; each step samples mean + std * noise, which is what encoding anew would give.
    """
    return encode_pixels(vae, to_pixels(image)[None].to(device))[0].cpu()


def sample_latents(moments: Tensor, posterior_noise: Tensor, scaling_factor: float) -> Tensor:
    """One draw from each posterior: moments (N, 2, C, h, w), posterior_noise (N, C, h, w) -> (N, C, h, w)."""
    return (moments[:, 0] + moments[:, 1] * posterior_noise) * scaling_factor
