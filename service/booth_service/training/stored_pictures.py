"""Photos and class images out of the object store, each checked by its hash; the moments that class sets hold ready."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image
from safetensors.torch import load
from torch import Tensor

from booth.contract.attempts import InstancePhoto, StoredFile
from booth.contract.jobs import Params
from booth_service.data.dataset import Picture
from booth_service.data.framing import Size
from booth_service.storage.s3 import ObjectStore
from booth_service.training.cache import CacheKey

THREADS = 8


@dataclass(frozen=True)
class ClassSet:
    """The class images of one subject, as their set's manifest names them; `sizes` are (height, width) in pixels.

    `moments` has a file for each block of `block_size` pictures, upright and mirrored, cut to the job's square.
    """

    address: str
    pictures: list[StoredFile]
    sizes: list[Size]
    moments: list[StoredFile]
    block_size: int


def photo_picture(store: ObjectStore, params: Params, photo: InstancePhoto) -> Picture:
    """A stored photo as the loop takes it."""
    image = _open(store.get(photo.key, photo.sha256))
    prompt, *others = [photo.caption] if photo.caption else instance_prompts(params, photo.subject)
    load_mask = None if photo.mask is None else partial(_load, store, photo.mask, "L")
    load_image = partial(_load, store, photo)
    return Picture(load_image, (image.height, image.width), prompt, photo.subject, load_mask, tuple(others))


def instance_prompts(params: Params, subject: int = 0) -> list[str]:
    """What photos without a caption are trained with: the subject's prompt, or all templates where the job has some."""
    words = params.subjects[subject]
    return [template.format(words.token) for template in params.caption_templates] or [words.instance_prompt]


def class_pictures(store: ObjectStore, params: Params, class_sets: Sequence[ClassSet]) -> list[Picture]:
    """The class images of all subjects, in order."""
    return [
        Picture(partial(_load, store, picture), size, params.subjects[number].class_prompt, number)
        for number, class_set in enumerate(class_sets)
        for picture, size in zip(class_set.pictures, class_set.sizes, strict=True)
    ]


def known_moments(store: ObjectStore, params: Params, class_sets: Sequence[ClassSet]) -> dict[CacheKey, Tensor]:
    """The moments of all class images that a step can ask for, (2, C, h, w) each: none of them is encoded again.

    Raises StorageError naming the file whose bytes are not the recorded ones.
    """
    if params.crop == "random":
        return {}
    square = (params.resolution, params.resolution)
    flips = {"upright": False, "mirrored": True} if params.random_flip else {"upright": False}
    known: dict[CacheKey, Tensor] = {}
    first = 0
    for class_set in class_sets:
        with ThreadPoolExecutor(THREADS) as pool:
            files = list(pool.map(lambda file: load(store.get(file.key, file.sha256)), class_set.moments))
        for number in range(len(class_set.pictures)):
            block, place = divmod(number, class_set.block_size)
            for name, flip in flips.items():
                known[(True, first + number, flip, square)] = files[block][name][place].clone()
        first += len(class_set.pictures)
    return known


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))  # the header alone; pixels are decoded when they are used


def _load(store: ObjectStore, file: StoredFile, mode: str = "RGB") -> Image.Image:
    return _open(store.get(file.key, file.sha256)).convert(mode)
