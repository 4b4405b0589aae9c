"""Stored photos and masks: upright, lossless, and without anything that the camera wrote into them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from booth.contract.photos import PhotoError
from booth_service.data.framing import cut, frame
from booth_service.data.images import check_mask, reencode, reencode_mask


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


def test_a_mask_is_stored_as_eight_bits_of_gray(noise):
    mask = noise.convert("L").point(lambda value: 255 if value > 128 else 0)
    for kind in ("L", "1", "RGB"):
        stored = opened(reencode_mask(encoded(mask.convert(kind), "PNG"), noise.size))
        assert (stored.mode, stored.format, stored.info) == ("L", "PNG", {})
        assert np.array_equal(stored, mask)


def test_a_mask_of_another_size_is_refused(noise):
    with pytest.raises(PhotoError, match="64 x 48 pixels, its photo 64 x 64"):
        reencode_mask(encoded(noise.convert("L"), "PNG"), (64, 64))


@pytest.mark.parametrize(
    ("column", "crop", "is_seen"),
    [(0, "center", False), (16, "center", True), (0, "bucket", True), (0, "random", True)],
)
def test_a_mask_must_mark_what_the_crop_shows(column, crop, is_seen):
    mask = Image.new("L", (96, 64))
    mask.paste(255, (column, 0, column + 1, 64))
    data = encoded(mask, "PNG")
    shown = cut(opened(data), frame((64, 96), (64, 64)))
    assert bool(np.array(shown).any()) is (column >= 16)
    if is_seen:
        check_mask(data, (96, 64), crop)
    else:
        with pytest.raises(PhotoError, match="middle square"):
            check_mask(data, (96, 64), crop)
