"""The parts of a diffusers text-to-image folder, loaded for training or drawing."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import nn

from booth_service.errors import BaseModelError


@dataclass
class Components:
    """What training needs of a base model. Modules are in evaluation mode and without gradients until asked."""

    tokenizer: Any
    text_encoder: nn.Module
    vae: Any
    unet: nn.Module
    noise_scheduler: Any

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def load_pipeline(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """The whole pipeline of a local diffusers folder, without safety checker, never with remote code.

    Raises BaseModelError where the folder cannot be loaded.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, safety_checker=None
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{folder} is not a loadable diffusers folder: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_components(folder: Path, dtype: torch.dtype = torch.float32) -> Components:
    """The parts of a Stable Diffusion folder, weights in `dtype` (fp32: optimizer masters need it)."""
    pipeline = load_pipeline(folder, dtype)
    missing = [name for name in ("tokenizer", "text_encoder", "vae", "unet") if getattr(pipeline, name, None) is None]
    if missing:
        raise BaseModelError(f"{folder} has no {', '.join(missing)}; only Stable Diffusion 1.x and 2.x folders train")
    for module in (pipeline.text_encoder, pipeline.vae, pipeline.unet):
        module.requires_grad_(False).eval()
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    return Components(pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet, noise_scheduler)


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of a component that pipelines load by default, relative to the folder."""
    files = sorted((folder / component).glob("*.safetensors"))
    return [file.relative_to(folder) for file in files if ".fp16." not in file.name]


def live_name(file_name: str, live_names: Collection[str]) -> str | None:
    """The loaded module's name for a tensor of a file, or None where the module has no such tensor.

    Libraries drop leading prefixes over time: "text_model.encoder.x" of older files is "encoder.x" in transformers 5.
    """
    parts = file_name.split(".")
    return next((name for start in range(len(parts)) if (name := ".".join(parts[start:])) in live_names), None)
