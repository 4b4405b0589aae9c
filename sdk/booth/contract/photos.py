"""What counts as a usable photo or mask. Client and service run this same check, so that they can never disagree.

The one part of the contract that is not a pydantic model; it needs Pillow, which it imports when first called.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
WHITE = 128  # a mask without a pixel of this brightness marks nothing: 0/1 label images are such masks


def open_photo(data: bytes) -> Image:
    """The photo in RGB, upright. Sizes are checked from the header, before any pixel is decoded.

    Raises PhotoError for what is not a still photo, is damaged or is too large.
    """
    return _decoded(data, "white").convert("RGB")


def open_mask(data: bytes, photo_size: tuple[int, int]) -> Image:
    """The mask of a photo with this upright (width, height): mode L, 255 where the subject is. Transparency is black.

    Raises PhotoError for what is no picture, has another size than the photo, or marks no subject.
    """
    mask = _decoded(data, "black").convert("L")
    if mask.size != photo_size:
        width, height = photo_size
        remedy = f"Save the mask with {width} x {height} pixels."
        if mask.size == (height, width):
            remedy = "Turn the mask: the photo is upright as its EXIF data says."
        raise PhotoError(f"The mask has {mask.width} x {mask.height} pixels, its photo {width} x {height}.", remedy)
    if (brightest := brightness(mask)) < WHITE:
        found = "all black" if brightest == 0 else f"all but black (its brightest pixel is {brightest} of 255)"
        raise PhotoError(f"The mask is {found}, so that it leaves nothing to learn.", "Make the subject white (255).")
    return mask


def upright_rgb(image: Image, background: str = "white") -> Image:
    """An opened picture as RGB of 8 bits a channel, upright, its transparency laid on the background."""
    return _upright(image, background).convert("RGB")


def brightness(mask: Image) -> int:
    """The brightest pixel of a picture in mode L, 0 to 255."""
    darkest_and_brightest: Any = mask.getextrema()
    return int(darkest_and_brightest[1])


def _decoded(data: bytes, background: str) -> Image:
    """The picture with 8 bits a channel, upright, its transparency laid on the background."""
    image = _identified(data)
    try:
        image.load()
        return _upright(image, background)
    except Exception as error:
        raise PhotoError(f"The file is damaged ({error}).", "Export the photo again as JPEG or PNG.") from None


def _identified(data: bytes) -> Image:
    """A still picture of a known format and a possible size, not decoded yet."""
    from PIL import Image, UnidentifiedImageError

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
    return image


def _upright(image: Image, background: str) -> Image:
    from PIL import ImageOps

    return _flat(_in_eight_bits(ImageOps.exif_transpose(image)), background)


def _in_eight_bits(image: Image) -> Image:
    """16-bit gray scaled to 8; Pillow's own conversion would make all but the darkest pixels white."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def _flat(image: Image, background: str) -> Image:
    """The image without transparency."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, background), layered).convert("RGB")
    return image


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
