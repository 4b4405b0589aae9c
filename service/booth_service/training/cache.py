"""What never changes during a job: posterior moments, masks and frames of its pictures, and its prompts."""

# N = pictures;  R = rows of a micro-batch;  C, h, w = latent channels and cells;  L = prompt tokens

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from PIL import Image, ImageOps
from torch import Tensor

from booth.contract.jobs import Params
from booth_service.data.dataset import Picture, Row
from booth_service.data.framing import Frame, Size, bucket, cut, frame
from booth_service.diffusion.components import Components
from booth_service.diffusion.latents import encode_moments, to_pixels

CacheKey = tuple[bool, int, bool, Size]  # is_class, image, flip, target size


@dataclass
class Cache:
    """Encoded pictures. `moments` (2, C, h, w) fp32 on the CPU for every key; empty with random crops.

    `targets` holds the size of each bucket, `shapes` each photo's bucket number.
    """

    params: Params
    photos: Sequence[Picture]
    class_images: Sequence[Picture]
    vae_scale_factor: int
    targets: list[Size]
    shapes: list[int]
    moments: dict[CacheKey, Tensor] = field(default_factory=dict)
    _masks: dict[CacheKey, Tensor] = field(default_factory=dict)
    _images: dict[tuple[bool, int], Image.Image] = field(default_factory=dict)

    @property
    def has_masks(self) -> bool:
        return any(photo.load_mask for photo in self.photos)

    @property
    def is_cached(self) -> bool:
        """False with random crops, which are encoded step by step."""
        return self.params.crop != "random"

    def picture(self, is_class: bool, image: int) -> Picture:
        return (self.class_images if is_class else self.photos)[image]

    def key(self, row: Row) -> CacheKey:
        return (row.is_class, row.image, row.flip, self.targets[row.shape])

    def frame(self, row: Row) -> Frame:
        """Where the row's picture is cut."""
        place = (0.5, 0.5) if self.is_cached else row.place
        return frame(self.picture(row.is_class, row.image).size, self.targets[row.shape], place)

    def pixels(self, row: Row) -> Tensor:
        """The row's part of its picture, (3, H, W) in [-1, 1]."""
        number = (row.is_class, row.image)
        if number not in self._images:
            self._images[number] = self.picture(*number).load()
        return to_pixels(_cut(self._images[number], self.frame(row), row.flip))

    def mask(self, row: Row) -> Tensor:
        """The share of every latent cell that lies inside the subject, (1, h, w) in [0, 1]; ones without a mask."""
        made = self.frame(row)
        load_mask = self.picture(row.is_class, row.image).load_mask
        height, width = (side // self.vae_scale_factor for side in made.target)
        if load_mask is None:
            return torch.ones(1, height, width)
        key = self.key(row)
        if key in self._masks:
            return self._masks[key]
        shown = _cut(load_mask(), made, row.flip).resize((width, height), Image.Resampling.BOX)
        mask = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(1, height, width).float() / 255
        mask = mask if mask.sum() > 0 else torch.ones_like(mask)  # the subject was cut off: better all than nothing
        if self.is_cached:
            self._masks[key] = mask
        return mask


def _cut(image: Image.Image, made: Frame, flip: bool) -> Image.Image:
    shown = cut(image, made)
    return ImageOps.mirror(shown) if flip else shown


@torch.no_grad()
def build_cache(
    params: Params,
    photos: Sequence[Picture],
    class_images: Sequence[Picture],
    components: Components,
    device: torch.device,
    on_encoded: Callable[[int, int], None],
    known: dict[CacheKey, Tensor] | None = None,
) -> Cache:
    """Encode every picture once, shared out over the ranks; all of them get all. The VAE leaves the device afterwards.

    `known` moments are not made again. `on_encoded(done, total)` is told how far this rank is.
    """
    multiple = components.vae_scale_factor * components.unet_scale_factor
    square = (params.resolution, params.resolution)
    targets, shapes = [square], [0] * len(photos)
    if params.crop == "bucket":
        targets, shapes = _buckets(photos, params.resolution, multiple)
    cache = Cache(params, photos, class_images, components.vae_scale_factor, targets, shapes)
    if not cache.is_cached:
        return cache
    wanted = _keys(cache)
    cache.moments |= {key: known[key] for key in wanted if key in known} if known else {}
    work = [key for key in wanted if key not in cache.moments]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    vae = components.vae.to(device, torch.float32)  # SDXL's VAE overflows in half precision
    made = {}
    for done, key in enumerate(work[rank::ranks], start=1):
        made[key] = encode_moments(vae, _shown(cache, key), device)
        on_encoded(done * ranks, len(work))
    components.vae.to("cpu")
    shares: list[dict[CacheKey, Tensor]] = [{} for _ in range(ranks)]
    dist.all_gather_object(shares, made)
    for share in shares:
        cache.moments |= share
    return cache


def _keys(cache: Cache) -> list[CacheKey]:
    """Everything that a row can ask for."""
    flips = [False, True] if cache.params.random_flip else [False]
    keys = [(False, i, flip, cache.targets[shape]) for i, shape in enumerate(cache.shapes) for flip in flips]
    for target in cache.targets:
        keys += [(True, i, flip, target) for i in range(len(cache.class_images)) for flip in flips]
    return keys


def _shown(cache: Cache, key: CacheKey) -> Image.Image:
    is_class, number, flip, target = key
    picture = cache.picture(is_class, number)
    return _cut(picture.load(), frame(picture.size, target), flip)


def _buckets(photos: Sequence[Picture], resolution: int, multiple: int) -> tuple[list[Size], list[int]]:
    """The distinct bucket sizes, and each photo's number among them."""
    sizes = [bucket(photo.size, resolution, multiple) for photo in photos]
    targets = sorted(set(sizes))
    return targets, [targets.index(size) for size in sizes]
