"""What counts as a usable photo. Client and service run this same check, so that they can never disagree.

The one part of the contract that is not a pydantic model; it needs Pillow, which it imports when first called.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from booth.contract import limits

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class PhotoError(Exception):
    """Why one photo is refused, and what to do."""

    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")


def open_photo(data: bytes) -> Image:
    """The photo in RGB, upright. Sizes are checked from the header, before any pixel is decoded.

    Raises PhotoError for what is not a still photo, is damaged or is too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise PhotoError("The file is empty.", "Give a photo.")
    if len(data) > limits.MAX_PHOTO_BYTES:
        size = f"{len(data) / 2**20:.0f} MiB"
        raise PhotoError(f"The file has {size}.", f"Send at most {limits.MAX_PHOTO_BYTES // 2**20} MiB.")
    formats = [*limits.PHOTO_FORMATS, *_heif_format(data)]
    most = limits.MAX_PHOTO_PIXELS // 10**6
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below, with a lower limit
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise PhotoError("It has hundreds of megapixels.", f"Scale it below {most} megapixels.") from None
    except UnidentifiedImageError:
        raise PhotoError("This is not a photo in a known format.", "Send JPEG, PNG or WebP files.") from None
    except Exception as error:
        raise PhotoError(f"The file cannot be read ({error}).", "Export the photo again as JPEG or PNG.") from None
    width, height = image.size
    if width * height > limits.MAX_PHOTO_PIXELS:
        raise PhotoError(f"It has {width} x {height} pixels.", f"Scale it below {most} megapixels.")
    if min(width, height) < limits.MIN_PHOTO_SIDE_PX:
        least = limits.MIN_PHOTO_SIDE_PX
        raise PhotoError(f"It has only {width} x {height} pixels.", f"Each side needs {least} pixels or more.")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise PhotoError(f"It is an animation of {frames} frames.", "Send one frame as JPEG or PNG.")
    try:
        image.load()
        return _flat_rgb(ImageOps.exif_transpose(image))
    except Exception as error:
        raise PhotoError(f"The file is damaged ({error}).", "Export the photo again as JPEG or PNG.") from None


def _flat_rgb(image: Image) -> Image:
    """RGB, with transparency laid on white."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _heif_format(data: bytes) -> list[str]:
    """["HEIF"] where the data is HEIC and the reader is installed; PhotoError where it is not."""
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIC_BRANDS:
        return []
    try:
        import pillow_heif
    except ImportError:
        raise PhotoError(
            "It is a HEIC photo, and the reader for those is not installed.",
            'Install it with pip install "booth[heif]", or export the photo as JPEG.',
        ) from None
    pillow_heif.register_heif_opener()
    return ["HEIF", "AVIF"]
