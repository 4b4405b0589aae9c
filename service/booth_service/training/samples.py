"""Sample pictures of the weights as they are, in the middle of a run and without touching it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL.Image import Image

from booth_service.diffusion.components import Components


@torch.no_grad()
def draw_samples(
    components: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float,
    num_inference_steps: int,
    resolution: int,
    device: torch.device,
) -> list[Image]:
    """One picture for each prompt and its seed, by the live modules; equal weights give equal pictures.

    The process's random state is as before. The VAE decodes in fp32 and is where it was afterwards.
    """
    pipeline, vae = components.pipeline, components.vae
    home = next(vae.parameters()).device
    vae.to(device)
    with _undisturbed(device), _computing(components, device):
        latents = pipeline(
            prompt=list(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            height=resolution,
            width=resolution,
            output_type="latent",
        ).images
    decoded = vae.decode(latents.float() / vae.config.scaling_factor).sample
    images: list[Image] = pipeline.image_processor.postprocess(decoded, output_type="pil")
    vae.to(home)
    return images


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _computing(components: Components, device: torch.device) -> Any:
    """fp32 weights on a GPU are masters that train under autocast: draw with them as they are trained."""
    fp32 = next(components.unet.parameters()).dtype == torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=fp32 and device.type == "cuda")
