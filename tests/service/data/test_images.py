"""Stored photos: upright, RGB, lossless, and without anything that the camera wrote into them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from booth.contract.photos import PhotoError
from booth_service.data.images import load_square, reencode


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def test_pixels_are_kept_bit_for_bit(noise):
    assert np.array_equal(opened(reencode(encoded(noise, "PNG"))), noise)


def test_nothing_but_pixels_comes_out(noise):
    exif = Image.Exif()
    exif[0x010F] = "canary-maker"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 7.0)  # GPS latitude
    data = encoded(noise, "JPEG", exif=exif, comment=b"canary-comment", icc_profile=b"canary-icc") + b"canary-tail"
    clean = reencode(data)
    assert b"canary" not in clean
    assert opened(clean).info == {}
    assert not opened(clean).getexif()


def test_a_rotated_photo_comes_out_upright(noise):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert opened(reencode(encoded(noise, "JPEG", exif=exif))).size == (48, 64)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_mode_becomes_rgb(noise, mode):
    assert opened(reencode(encoded(noise.convert(mode), "JPEG"))).mode == "RGB"


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert opened(reencode(encoded(image, "PNG"))).getpixel((5, 5)) == (255, 255, 255)


def test_what_is_no_photo_is_refused():
    with pytest.raises(PhotoError):
        reencode(Path(__file__).read_bytes())


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 200), (64, 64)])
@pytest.mark.parametrize("resolution", [32, 64, 96])
def test_squares_have_the_asked_size(size, resolution):
    square = load_square(encoded(Image.new("RGB", size), "PNG"), resolution)
    assert (square.size, square.mode) == ((resolution, resolution), "RGB")


def test_the_square_is_the_middle():
    image = Image.new("RGB", (96, 32), "black")
    image.paste(Image.new("RGB", (32, 32), "white"), (32, 0))
    assert np.array(load_square(encoded(image, "PNG"), 32)).min() == 255


def test_a_square_of_the_right_size_is_untouched(noise):
    square = noise.crop((0, 0, 48, 48))
    assert np.array_equal(load_square(encoded(square, "PNG"), 48), square)
