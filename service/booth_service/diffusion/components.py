"""The parts of a diffusers text-to-image folder, loaded for training or drawing."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline
from torch import nn

from booth_service.errors import BaseModelError


@dataclass(frozen=True)
class Family:
    """Base models that are trained alike; the tuples name folders, and encoder k reads what tokenizer k writes.

    `without` are the pipeline's arguments that leave out what would change pictures unasked.
    """

    name: str
    tokenizers: tuple[str, ...]
    text_encoders: tuple[str, ...]
    without: dict[str, Any]

    def trained_folders(self, train_text_encoder: bool) -> tuple[str, ...]:
        """The folders whose weights a job changes, the UNet's first."""
        return ("unet", *(self.text_encoders if train_text_encoder else ()))


FAMILIES = {
    "StableDiffusionPipeline": Family(
        name="stable-diffusion",
        tokenizers=("tokenizer",),
        text_encoders=("text_encoder",),
        without={"safety_checker": None},
    ),
    "StableDiffusionXLPipeline": Family(
        name="stable-diffusion-xl",
        tokenizers=("tokenizer", "tokenizer_2"),
        text_encoders=("text_encoder", "text_encoder_2"),
        without={"add_watermarker": False},  # class images with a watermark would teach it
    ),
}
PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass
class Components:
    """What training needs of a base model. Modules are in evaluation mode and without gradients until asked.

    The VAE is always fp32: SDXL's overflows in fp16. `pipeline` holds the very same modules, ready to draw.
    """

    family: Family
    tokenizers: list[Any]
    text_encoders: list[nn.Module]
    vae: Any
    unet: nn.Module
    noise_scheduler: Any
    pipeline: Any

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def unet_scale_factor(self) -> int:
        """Latent cells that the UNet's lowest level makes one of, along one side: sizes must be multiples of it."""
        config: Any = self.unet.config
        return int(2 ** (len(config.block_out_channels) - 1))


def family_of(folder: Path) -> Family:
    """The family of a diffusers folder, from its model_index.json. Raises BaseModelError for any other."""
    try:
        class_name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{folder} is not a loadable diffusers folder: model_index.json: {error!r}") from error
    if not isinstance(class_name, str) or class_name not in FAMILIES:
        raise BaseModelError(f"{folder} is a {class_name}; only {' and '.join(FAMILIES)} folders can be trained")
    return FAMILIES[class_name]


def load_pipeline(folder: Path, dtype: torch.dtype | Mapping[str, torch.dtype]) -> Any:
    """The whole pipeline of a local diffusers folder, without safety checker or watermark, never with remote code.

    `dtype` is that of all parts, or a mapping of folder name (or "default") to dtype. Raises BaseModelError where the
    folder cannot be loaded.
    """
    family = family_of(folder)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **family.without
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{folder} is not a loadable diffusers folder: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_vae(folder: Path) -> Any:
    """The VAE of a local diffusers folder in fp32, as pictures are encoded with it. Raises BaseModelError."""
    try:
        vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{folder / 'vae'} is not a loadable VAE: {error}") from error
    return vae.requires_grad_(False).eval()


def load_components(folder: Path, dtype: torch.dtype = torch.float32) -> Components:
    """The parts of a base model folder, weights in `dtype` (fp32: optimizer masters need it), the VAE's in fp32.

    Raises BaseModelError where a part is missing. Values are not looked at: a registered base model's were, when it was
    added, and its bytes are checked by hash when they come to a node.
    """
    family = family_of(folder)
    pipeline = load_pipeline(folder, {"default": dtype, "vae": torch.float32})
    names = (*family.tokenizers, *family.text_encoders, "vae", "unet")
    missing = [name for name in names if getattr(pipeline, name, None) is None]
    if missing:
        raise BaseModelError(f"{folder} has no {', '.join(missing)}; a {family.name} base model needs all of {names}")
    for name in (*family.text_encoders, "vae", "unet"):
        getattr(pipeline, name).requires_grad_(False).eval()
    return Components(
        family=family,
        tokenizers=[getattr(pipeline, name) for name in family.tokenizers],
        text_encoders=[getattr(pipeline, name) for name in family.text_encoders],
        vae=pipeline.vae,
        unet=pipeline.unet,
        noise_scheduler=noise_scheduler_of(pipeline.scheduler),
        pipeline=pipeline,
    )


def noise_scheduler_of(scheduler: Any) -> DDPMScheduler:
    """DDPM's forward process (Ho et al. 2020, eq. 4) with the betas and the prediction type of a base's own scheduler.

    Raises BaseModelError where the scheduler is not of that kind (EDM, flow matching).
    """
    if "beta_schedule" not in scheduler.config:
        raise BaseModelError(f"the base model's {type(scheduler).__name__} has no betas; only DDPM-like ones train")
    prediction_type = scheduler.config.get("prediction_type", PREDICTION_TYPES[0])
    if prediction_type not in PREDICTION_TYPES:
        raise BaseModelError(f"prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}")
    noise_scheduler: DDPMScheduler = DDPMScheduler.from_config(scheduler.config)
    return noise_scheduler


def refuse_not_finite(components: Components) -> None:
    """Raise BaseModelError, naming component and tensor, where a weight is NaN or infinite; reads every weight."""
    encoders = zip(components.family.text_encoders, components.text_encoders, strict=True)
    for component, module in (*encoders, ("vae", components.vae), ("unet", components.unet)):
        _refuse_not_finite(component, module)


def _refuse_not_finite(component: str, module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            least, most = torch.aminmax(tensor)  # NaN goes through both; one pass and no mask of the tensor's size
            if not (torch.isfinite(least) and torch.isfinite(most)):
                raise BaseModelError(
                    f"the base model's {component} has values that are not finite in {name}; fetch the folder again"
                )


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
