"""How a picture becomes a training picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from booth_service.data.framing import MAX_ASPECT, bucket, cut, frame

SIDES = st.integers(32, 3000)


def shown(image: Image.Image, target: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    return np.array(cut(image, frame((image.height, image.width), target, place)))


@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_frame_lies_inside_what_it_is_cut_from(h: int, w: int, rows: int, columns: int, y: float, x: float) -> None:
    made = frame((h, w), (rows * 8, columns * 8), (y, x))
    assert 0 <= made.top <= made.scaled[0] - made.target[0]
    assert 0 <= made.left <= made.scaled[1] - made.target[1]
    # It covers the target in one direction exactly: nothing is scaled up more than needed.
    assert made.scaled[0] == made.target[0] or made.scaled[1] == made.target[1]


def test_the_middle_is_the_default_and_corners_can_be_had() -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste(Image.new("RGB", (32, 32), "white"), (32, 0))
    assert shown(image, (32, 32)).min() == 255
    assert shown(image, (32, 32), (0.0, 0.0)).max() == 0


def test_a_picture_of_the_right_size_is_untouched() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    assert np.array_equal(shown(noise, (48, 48)), noise)


def test_time_ids_are_sdxls() -> None:
    assert frame((1000, 2000), (512, 512)).time_ids == (1000, 2000, 0, 256, 512, 512)


@given(SIDES, SIDES, st.sampled_from([64, 512, 768, 1024]), st.sampled_from([8, 16, 64]))
def test_buckets_are_multiples_of_about_one_area(height: int, width: int, resolution: int, multiple: int) -> None:
    h, w = bucket((height, width), resolution, multiple)
    assert h % multiple == w % multiple == 0
    # Each side is rounded to the nearest multiple, from the exact one.
    aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, width / height))
    assert abs(h - resolution / aspect**0.5) <= multiple / 2 + 1e-6
    assert abs(w - resolution * aspect**0.5) <= multiple / 2 + 1e-6


@pytest.mark.parametrize(
    ("size", "expected"), [((500, 500), (512, 512)), ((1080, 1920), (384, 704)), ((9, 1), (704, 384))]
)
def test_known_buckets(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert bucket(size, 512, 64) == expected
