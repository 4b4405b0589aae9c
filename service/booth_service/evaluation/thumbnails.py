"""Small copies of pictures for reports. Pure; Pillow alone."""

import io

from PIL import Image

from booth.contract.photos import upright_rgb

QUALITY = 78
_SIDES_PX = ((300, 256), (1_500, 160))  # up to so many pictures, so large: reports stay below some 25 MB
SMALLEST_PX = 112


def side_px(pictures: int) -> int:
    """The longer side of the small copies in a report of so many pictures."""
    return next((side for most, side in _SIDES_PX if pictures <= most), SMALLEST_PX)


def thumbnail(image: Image.Image, longest_px: int) -> bytes:
    """The picture as WebP, upright, RGB, its longer side at most this; one that is smaller keeps its size."""
    small = upright_rgb(image)
    small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=QUALITY)
    return out.getvalue()


def thumbnail_of(data: bytes, longest_px: int) -> bytes:
    """The same of a picture file; a WebP that is small enough comes back as it is."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "WEBP" and max(image.size) <= longest_px:
            return data
        return thumbnail(image, longest_px)
