"""Photos and masks as they are stored and as training sees them. Pillow only."""

import io

from PIL import Image, ImageOps

from booth.contract.jobs import Crop
from booth.contract.photos import WHITE, PhotoError, brightness, open_mask, open_photo
from booth_service.data.framing import cut, frame


def reencode(data: bytes) -> bytes:
    """The photo as PNG: upright, RGB, lossless, with no metadata of the original.

    Raises booth.contract.photos.PhotoError where `data` is no usable photo.
    """
    return _png(open_photo(data))


def reencode_mask(data: bytes, photo_size: tuple[int, int]) -> bytes:
    """The mask of a photo with this (width, height) as 8-bit gray PNG: upright, 255 where the subject is.

    Raises booth.contract.photos.PhotoError where `data` is no usable mask of such a photo.
    """
    return _png(open_mask(data, photo_size))


def start_picture(data: bytes, size: tuple[int, int]) -> bytes:
    """The picture that drawing starts from (img2img), as PNG of this (width, height): its middle, scaled, no metadata.

    Raises booth.contract.photos.PhotoError where `data` is no usable picture.
    """
    return _png(ImageOps.fit(open_photo(data), size, Image.Resampling.LANCZOS))


def check_mask(png: bytes, photo_size: tuple[int, int], crop: Crop) -> None:
    """The mask fits its photo, and marks something in the part of it that training sees. Raises PhotoError."""
    mask = open_mask(png, photo_size)
    if crop == "center" and brightness(_middle_square(mask)) < WHITE:
        raise PhotoError(
            "Nothing is white in the middle square of the mask, and crop center trains on no more of the photo.",
            'Set crop to "bucket", or cut photo and mask so that the subject is in the middle.',
        )


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a stored picture, from its header."""
    with Image.open(io.BytesIO(png)) as image:
        return image.size


def _middle_square(image: Image.Image) -> Image.Image:
    """What training with crop center sees of a picture, at the picture's own scale."""
    side = min(image.size)
    return cut(image, frame((image.height, image.width), (side, side)))


def _png(image: Image.Image) -> bytes:
    """Pixels alone, with no metadata of the original."""
    clean = Image.new(image.mode, image.size)
    clean.paste(image)
    out = io.BytesIO()
    clean.save(out, "PNG", compress_level=1)  # 1: a phone's photo in half a second instead of five
    return out.getvalue()
