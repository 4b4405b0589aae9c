"""How a picture becomes a training picture: scaled to cover, then cut. Geometry is pure; sizes are (height, width)."""

import math
from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
MAX_ASPECT = 2.0  # photos beyond 1:2 are cut to it: longer buckets hold few photos and distort what the UNet knows


@dataclass(frozen=True)
class Frame:
    """Scale the `original` to `scaled`, then cut `target` with its corner at (top, left). All in pixels."""

    original: Size
    scaled: Size
    top: int
    left: int
    target: Size

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's micro-conditioning (Podell et al. 2023, section 2.2): original size, crop corner, target size."""
        return (*self.original, self.top, self.left, *self.target)


def frame(original: Size, target: Size, place: tuple[float, float] = (0.5, 0.5)) -> Frame:
    """The frame that covers `target`, cut at `place`: (0, 0) is the top left corner, (0.5, 0.5) the middle."""
    scale = max(target[0] / original[0], target[1] / original[1])
    scaled = (max(target[0], round(original[0] * scale)), max(target[1], round(original[1] * scale)))
    top, left = (round((whole - part) * share) for whole, part, share in zip(scaled, target, place, strict=True))
    return Frame(original, scaled, top, left, target)


def cut(image: Image.Image, frame: Frame) -> Image.Image:
    """The framed part of a picture of the frame's original size, by Lanczos."""
    height, width = frame.scaled
    scaled = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    box = (frame.left, frame.top, frame.left + frame.target[1], frame.top + frame.target[0])
    return scaled.crop(box)


def bucket(original: Size, resolution: int, multiple: int) -> Size:
    """The size nearest to the picture's shape with sides that are multiples and about resolution x resolution area."""
    aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, original[1] / original[0]))
    height = max(multiple, round(resolution / math.sqrt(aspect) / multiple) * multiple)
    width = max(multiple, round(resolution * math.sqrt(aspect) / multiple) * multiple)
    return height, width
