"""Pictures of any size and mode as an encoder's input, real and generated ones alike."""

from collections.abc import Sequence

import numpy
import torch
from PIL import Image
from torch import Tensor

from booth.contract.encoders import Preprocessing
from booth.contract.photos import upright_rgb
from booth_service.errors import ScoreError

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def tensors(images: Sequence[Image.Image], how: Preprocessing) -> Tensor:
    """The pictures as (N, 3, crop_px, crop_px) float32, scaled, cut and normalised as `how` says.

    Transparency is laid on white; pictures are turned upright as their EXIF data says. Raises ScoreError, naming the
    picture, where one cannot be decoded.
    """
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (how.mean, how.std))
    made = [(_pixels(image, number, how) - mean) / std for number, image in enumerate(images)]
    return torch.stack(made) if made else torch.empty(0, 3, how.crop_px, how.crop_px)


def _pixels(image: Image.Image, number: int, how: Preprocessing) -> Tensor:
    """(3, crop_px, crop_px) float32 in [0, 1]."""
    try:
        cut = square(upright_rgb(image), how)
    except (OSError, ValueError, SyntaxError) as error:
        raise ScoreError(f"picture {number} cannot be decoded ({error}); draw or export it again") from error
    return torch.from_numpy(numpy.array(cut)).permute(2, 0, 1).to(torch.float32) / 255


def square(image: Image.Image, how: Preprocessing) -> Image.Image:
    """The middle square of crop_px after the shorter side became resize_px."""
    shorter = min(image.size)
    width, height = (max(how.resize_px, round(side * how.resize_px / shorter)) for side in image.size)
    scaled = image.resize((width, height), _FILTERS[how.resample])
    left, top = (width - how.crop_px) // 2, (height - how.crop_px) // 2
    return scaled.crop((left, top, left + how.crop_px, top + how.crop_px))
