"""Photos as they are stored and as training sees them. Pillow only."""

import io

from PIL import Image, ImageOps

from booth.contract.photos import open_photo


def reencode(data: bytes) -> bytes:
    """The photo as PNG: upright, RGB, lossless, with no metadata of the original.

    Raises booth.contract.photos.PhotoError where `data` is no usable photo.
    """
    photo = open_photo(data)
    clean = Image.new("RGB", photo.size)
    clean.paste(photo)
    out = io.BytesIO()
    clean.save(out, "PNG", compress_level=1)  # 1: a phone's photo in half a second instead of five
    return out.getvalue()


def load_square(data: bytes, resolution: int) -> Image.Image:
    """The middle square of a stored photo at `resolution` x `resolution` px, RGB, by Lanczos."""
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
