"""IP-Adapter (Ye et al. 2023): a photo as a further prompt, beside the text, through layers that the UNet gets for it.

All of it is diffusers' own: its loader, its attention, its pipelines. Here is what takes it off again, so that batches
with a photo and batches without one share a UNet: outside of `image_prompted` nothing of an adapter is on it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from booth.contract.ip_adapter import EMBEDS_PATH, FOLDER, IMAGE_ENCODER
from booth_service.diffusion.batch_pipeline import pipeline_of_batch
from booth_service.errors import BaseModelError

_HID_DIM_TYPE = "ip_image_proj"  # what diffusers' loader writes into the UNet's config


@dataclass(frozen=True)
class Adapter:
    """The layers of one adapter on the device: attention for every layer of the UNet, and what reads the embeddings."""

    attention: Mapping[str, Any]
    projection: nn.Module


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """A photo as an adapter takes it: `embeds` (2, 1, D) or (2, 1, tokens, D), that of no photo first; `scale` 0 to 1,
    how much it counts."""

    adapter: Adapter
    embeds: Tensor
    scale: float

    def embeds_of(self, pipeline: Any, guidance_scale: float) -> list[Tensor]:
        """What `pipeline` takes as `ip_adapter_image_embeds`: both halves where it guides, else the photo's alone."""
        guides = guidance_scale > 1 and pipeline.unet.config.time_cond_proj_dim is None
        embeds = self.embeds.to(pipeline.unet.dtype)
        return [embeds if guides else embeds[1:]]


def load_adapter(shared: Any, folder: Path) -> Adapter:
    """The adapter of a model's folder, on the device and in the dtype of the pipeline `shared`, which is as it was.

    Raises BaseModelError where it cannot be loaded. Its image encoder is not needed.
    """
    with pipeline_of_batch(shared, "base", img2img=False) as live, _own_attention(live.unet):
        _load(live, folder, image_encoder=None)
        projection = live.unet.encoder_hid_proj
        live.unet.encoder_hid_proj = None  # a resampler has attention of its own, which is none of the UNet's
        return Adapter(live.unet.attn_processors, projection.requires_grad_(False))


@torch.no_grad()
def embeds_of_photo(shared: Any, folder: Path, photo: Image) -> Tensor:
    """The photo as diffusers' pipeline would prepare it for the adapter of a model's folder, `ImagePrompt.embeds`.

    `shared` is a pipeline of the folder's base model, and is as it was. Raises BaseModelError.
    """
    with pipeline_of_batch(shared, "base", img2img=False) as live, _own_attention(live.unet):
        _load(live, folder, image_encoder=f"{FOLDER}/{IMAGE_ENCODER}")
        (embeds,) = live.prepare_ip_adapter_image_embeds(
            ip_adapter_image=photo.convert("RGB"),
            ip_adapter_image_embeds=None,
            device=live.unet.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        prepared: Tensor = embeds.cpu()
        return prepared


@contextmanager
def image_prompted(pipeline: Any, prompt: ImagePrompt | None) -> Iterator[None]:
    """The pipeline's UNet looks at the photo, if there is one; afterwards it is as it was."""
    if prompt is None:
        yield
        return
    unet = pipeline.unet
    with _own_attention(unet):
        unet.set_attn_processor(dict(prompt.adapter.attention))
        unet.encoder_hid_proj = prompt.adapter.projection
        unet.config.encoder_hid_dim_type = _HID_DIM_TYPE
        pipeline.set_ip_adapter_scale(prompt.scale)
        yield


def weights_name(folder: Path) -> str:
    """The adapter's one weight file in a model's folder. Raises BaseModelError."""
    found = [path.name for path in (folder / FOLDER).glob("*.safetensors") if path.name != Path(EMBEDS_PATH).name]
    if len(found) != 1:
        raise BaseModelError(f"{folder / FOLDER} has {len(found)} adapter weight files, and needs one")
    return found[0]


def _load(pipeline: Any, folder: Path, image_encoder: str | None) -> None:
    try:
        pipeline.load_ip_adapter(
            folder,
            subfolder=FOLDER,
            weight_name=weights_name(folder),
            image_encoder_folder=image_encoder,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseModelError(f"the IP-Adapter of {folder} cannot be loaded: {error}") from error


@contextmanager
def _own_attention(unet: Any) -> Iterator[None]:
    """The UNet's attention and projection are its own again afterwards, the very same objects."""
    projection, kind = unet.encoder_hid_proj, unet.config.encoder_hid_dim_type
    attention = unet.attn_processors
    try:
        yield
    finally:
        unet.encoder_hid_proj = projection  # before the attention: an adapter's projection may have some that counts
        unet.config.encoder_hid_dim_type = kind
        unet.set_attn_processor(attention)
