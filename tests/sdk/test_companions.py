"""Captions and masks: the files beside a photo, what Python hands over in their place, and which are refused."""

from pathlib import Path

import numpy as np
import photo_files as files
import pytest
from PIL import Image

from booth import Photo
from booth.contract.photos import open_mask
from booth.images import collect


@pytest.fixture
def photo_path(tmp_path: Path) -> Path:
    [path] = files.good_photos(tmp_path, 1)
    return path


def test_a_folder_gives_each_photo_its_caption_and_mask(tmp_path: Path) -> None:
    files.good_photos(tmp_path, 3)
    (tmp_path / "00.txt").write_text("a photo of sks dog\non a sofa\n")
    files.mask((65, 64)).save(tmp_path / "01.mask.png")
    found = collect(tmp_path)
    assert (found.problems, found.warnings) == ([], [])
    assert [photo.filename for photo in found.photos] == ["00.jpg", "01.jpg", "02.jpg"]
    assert [photo.caption for photo in found.photos] == ["a photo of sks dog on a sofa", None, None]
    [mask] = [photo.mask for photo in found.photos if photo.mask is not None]
    assert mask.data == (tmp_path / "01.mask.png").read_bytes()
    assert found.photos[1].mask is mask
    assert [file.filename for file in found.files] == ["00.jpg", "01.jpg", "01.mask.png", "02.jpg"]
    assert found.photos[1].ref.mask.sha256 == mask.sha256


@pytest.mark.parametrize("as_one_glob", [True, False])
def test_captions_and_masks_that_a_shell_gives_along_are_no_photos(tmp_path: Path, as_one_glob: bool) -> None:
    [path] = files.good_photos(tmp_path, 1)
    path.with_suffix(".txt").write_text("sks dog")
    files.mask().save(tmp_path / "00.mask.png")
    found = collect(str(tmp_path / "*") if as_one_glob else sorted(tmp_path.iterdir()))
    assert found.problems == []
    [photo] = found.photos
    assert (photo.filename, photo.caption, photo.mask.filename) == ("00.jpg", "sks dog", "00.mask.png")


def test_a_mask_without_its_photo_is_never_a_photo(tmp_path: Path) -> None:
    files.good_photos(tmp_path, 1)
    for name in ("01.mask.png", "00.mask.jpg"):
        files.mask().save(tmp_path / name)
    found = collect(tmp_path)
    assert [photo.filename for photo in found.photos] == ["00.jpg"]
    [warning] = found.warnings
    assert "00.mask.jpg, 01.mask.png" in warning
    [problem] = collect(tmp_path / "01.mask.png").problems
    assert "mask of a photo that is not given" in problem.message


def test_python_hands_over_captions_and_masks_of_every_kind(photo_path: Path) -> None:
    mask_path = photo_path.with_name("any name.png")
    files.mask().save(mask_path)
    for mask in (str(mask_path), mask_path, mask_path.read_bytes(), Image.open(mask_path), files.mask().convert("1")):
        found = collect([Photo(photo_path.read_bytes(), caption=" a  sks dog ", mask=mask)])
        assert found.problems == []
        [photo] = found.photos
        assert photo.caption == "a sks dog"
        assert np.array_equal(open_mask(photo.mask.data, (64, 64)), files.mask())


def test_what_python_says_goes_before_the_files_beside_the_photo(photo_path: Path) -> None:
    photo_path.with_suffix(".txt").write_text("from the file")
    [told] = collect(Photo(str(photo_path), caption="from Python")).photos
    [beside] = collect(Photo(str(photo_path))).photos
    assert (told.caption, beside.caption) == ("from Python", "from the file")


@pytest.mark.parametrize(
    ("content", "reason", "remedy"),
    [
        (b"", "empty", "give no caption"),
        (b" \n\t", "empty", "give no caption"),
        (b"\xff\xfea\0 \0s\0k\0s\0", "not text in UTF-8", "Save it as UTF-8"),
        (b"a\0 \0s\0k\0s\0", "control characters", "UTF-8"),
        (b"word " * 201, "more than 1000 characters", "Shorten it"),
        (b"x" * 10**6, "more than 1000 characters", "Shorten it"),
    ],
)
def test_a_bad_caption_file_is_named(photo_path: Path, content: bytes, reason: str, remedy: str) -> None:
    caption = photo_path.with_suffix(".txt")
    caption.write_bytes(content)
    found = collect(photo_path)
    [problem] = found.problems
    assert problem.field == str(caption)
    assert reason in problem.message
    assert remedy in problem.remedy
    assert found.photos == []


def test_a_byte_order_mark_is_no_part_of_a_caption(photo_path: Path) -> None:
    photo_path.with_suffix(".txt").write_bytes(b"\xef\xbb\xbfsks \xe7\x8a\xac")
    [photo] = collect(photo_path).photos
    assert photo.caption == "sks \N{CJK UNIFIED IDEOGRAPH-72AC}"


def bad_mask(image: Image.Image, folder: Path) -> Path:
    path = folder / "00.mask.png"
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("image", "reason", "remedy"),
    [
        (files.mask((32, 48)), "32 x 48 pixels, its photo 64 x 64", "with 64 x 64 pixels"),
        (Image.new("L", (64, 64)), "all black", "white (255)"),
        (files.mask().point(lambda value: value // 255), "brightest pixel is 1 of 255", "white (255)"),
        (Image.new("RGBA", (64, 64), (255, 255, 255, 0)), "all black", "white (255)"),
    ],
)
def test_a_bad_mask_is_named(photo_path: Path, image: Image.Image, reason: str, remedy: str) -> None:
    path = bad_mask(image, photo_path.parent)
    found = collect(photo_path)
    [problem] = found.problems
    assert problem.field == str(path)
    assert reason in problem.message
    assert remedy in problem.remedy


def test_a_mask_drawn_on_the_photo_before_it_was_turned_is_told_so(tmp_path: Path) -> None:
    path = files.sideways_jpeg(tmp_path)
    files.mask((96, 64)).save(tmp_path / "sideways.mask.png")
    [problem] = collect(path).problems
    assert "Turn the mask" in problem.remedy
    files.mask((64, 96)).save(tmp_path / "sideways.mask.png")
    assert collect(path).problems == []


def test_sixteen_bits_of_gray_are_scaled_and_not_cut(photo_path: Path) -> None:
    halves = np.zeros((64, 64), np.uint16)
    halves[:, :32], halves[:, 32:] = 0x4000, 0xFFFF
    [photo] = collect(Photo(photo_path, mask=Image.fromarray(halves))).photos
    assert np.unique(open_mask(photo.mask.data, (64, 64))).tolist() == [0x40, 0xFF]


def test_all_that_is_wrong_with_one_photo_is_said_at_once(tmp_path: Path) -> None:
    path = files.truncated_jpeg(tmp_path)
    path.with_suffix(".txt").touch()
    (tmp_path / "truncated.mask.png").write_bytes(b"no picture")
    found = collect([path, Photo(files.picture(), caption=7, mask=3.5)])  # type: ignore[arg-type]
    assert [problem.field for problem in found.problems] == [
        str(path),
        str(path.with_suffix(".txt")),
        "caption of images.1",
        "mask of images.1",
    ]


def test_a_photo_given_twice_keeps_the_first_ones_caption_and_says_so(photo_path: Path) -> None:
    found = collect([Photo(photo_path, caption="first"), Photo(photo_path, caption="second")])
    assert [photo.caption for photo in found.photos] == ["first"]
    assert "with the first one's caption" in found.warnings[0]
