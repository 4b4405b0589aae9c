"""Making one block of class images: drawn by the base model, or a user's own, and encoded; stored, record last."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from booth.contract.attempts import StoredFile
from booth_service.data.framing import cut, frame
from booth_service.diffusion.components import load_pipeline, load_vae
from booth_service.diffusion.latents import encode_moments
from booth_service.diffusion.sampling import draw
from booth_service.prior.blocks import Place, store_moments, store_pictures, store_record
from booth_service.prior.class_set import ClassBlock, ClassPicture, ClassSetSpec, Spec
from booth_service.storage.base_model import materialize


@dataclass(frozen=True)
class SetWork:
    """All that whoever makes blocks of a set needs. Small and picklable; weights come from the object store."""

    spec: Spec
    place: Place
    base_files: list[StoredFile]
    scratch_dir: str | None
    use_gpu: bool


@dataclass(frozen=True)
class BlockTask:
    """A block to make, by its first picture. `replace`: its record stands already and is put anew."""

    first: int
    replace: bool = False


class BlockMaker:
    """Makes whole blocks of one set. Holds the base model's pipeline (for own pictures its VAE alone)."""

    def __init__(self, work: SetWork) -> None:
        self.work = work
        self.device = torch.device("cuda" if work.use_gpu else "cpu")
        folder = materialize(work.place.store, work.base_files, work.scratch_dir)
        self.pipeline: Any = None
        if isinstance(work.spec, ClassSetSpec):
            torch.set_num_threads(work.spec.threads_per_actor)
            self.pipeline = _pipeline(folder, work.spec).to(self.device)
        else:
            torch.set_num_threads(1)
        self.vae = self._fp32_vae(folder)

    def make(self, task: BlockTask) -> ClassBlock:
        """The block, stored. Raises StorageError."""
        work = self.work
        if isinstance(work.spec, ClassSetSpec):
            images = self._drawn(work.spec, task.first)
            pictures = store_pictures(work.place, task.first, images)
        else:
            pictures = [work.spec.pictures[index] for index in work.spec.block(task.first)]
            images = [_load(work.place, picture) for picture in pictures]
        squares = [_square(image, work.spec.resolution) for image in images]
        upright = [self._moments(square) for square in squares]
        mirrored = [self._moments(ImageOps.mirror(square)) for square in squares]
        moments = store_moments(work.place, task.first, upright, mirrored)
        block = ClassBlock(first=task.first, pictures=pictures, moments=moments)
        return store_record(work.place, block, replace=task.replace)

    def _drawn(self, spec: ClassSetSpec, first: int) -> list[Image.Image]:
        indices = spec.block(first)
        return draw(
            self.pipeline,
            [spec.class_prompt] * len(indices),
            [spec.negative_prompt] * len(indices),
            [spec.item_seed(index) for index in indices],
            guidance_scale=spec.guidance_scale,
            num_inference_steps=spec.num_inference_steps,
            resolution=spec.resolution,
            batch_size=spec.block_size,
            scheduler=spec.scheduler,
        )

    def _moments(self, square: Image.Image) -> Tensor:
        return encode_moments(self.vae, square, self.device)

    def _fp32_vae(self, folder: Path) -> Any:
        """The VAE as training encodes with it; the pipeline's own, where that is fp32 already."""
        if self.pipeline is not None and self.pipeline.vae.dtype == torch.float32:
            return self.pipeline.vae
        return load_vae(folder).to(self.device)


def _pipeline(folder: Path, spec: ClassSetSpec) -> Any:
    return load_pipeline(folder, getattr(torch, spec.dtype))


def _load(place: Place, picture: ClassPicture) -> Image.Image:
    return Image.open(io.BytesIO(place.store.get(picture.key, picture.sha256))).convert("RGB")


def _square(image: Image.Image, resolution: int) -> Image.Image:
    """What training with crop center sees of the picture."""
    return cut(image, frame((image.height, image.width), (resolution, resolution)))
