"""Which photos are found, which are refused, and that every bad one is named with its remedy."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import photo_files as files
import pytest
from PIL import Image

from booth.contract.photos import open_photo
from booth.images import collect

CANDLE_MPO = Path(__file__).parents[3] / "shared" / "data" / "dreambooth" / "candle_mpo"


def test_a_folder_gives_its_images_by_name_and_names_the_rest(tmp_path: Path) -> None:
    files.good_photos(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("not a photo")
    (tmp_path / ".DS_Store").write_text("nobody made this")
    (tmp_path / "older").mkdir()
    found = collect(tmp_path)
    assert [photo.filename for photo in found.photos] == ["00.jpg", "01.jpg", "02.jpg"]
    assert found.problems == []
    [warning] = found.warnings
    assert "notes.txt, older" in warning
    assert "DS_Store" not in warning


def test_paths_globs_bytes_and_pil_images_mix(tmp_path: Path) -> None:
    first, second, third = files.good_photos(tmp_path, 3)
    found = collect([str(first), str(tmp_path / "*1.jpg"), third.read_bytes(), files.picture(40, 40)])
    assert found.problems == []
    assert [photo.filename for photo in found.photos] == ["00.jpg", "01.jpg", "image-3", "image-4"]
    assert found.photos[1].data == second.read_bytes()


@pytest.mark.parametrize("wrap", [str, Path, Path.read_bytes, Image.open])
def test_a_lone_photo_needs_no_list(tmp_path: Path, wrap: Callable[[Path], object]) -> None:
    [path] = files.good_photos(tmp_path, 1)
    found = collect(wrap(path))  # type: ignore[arg-type]
    assert len(found.photos) == 1
    assert found.problems == []


@pytest.mark.parametrize(
    ("make", "reason", "remedy"),
    [
        (files.text_named_jpg, "not a photo", "JPEG, PNG or WebP"),
        (files.truncated_jpeg, "damaged", "Export the photo again"),
        (files.bomb_png, "13000 x 13000 pixels", "below 50 megapixels"),
        (files.animated_gif, "not a photo in a known format", "JPEG, PNG or WebP"),
        (files.animated_webp, "animation of 2 frames", "one frame"),
        (files.tiny_png, "only 16 x 16 pixels", "32 pixels or more"),
        (files.empty_file, "empty", "Give a photo"),
        (lambda folder: folder / "gone.jpg", "no such file", "Check the path"),
    ],
)
def test_a_bad_file_is_named_with_reason_and_remedy(
    tmp_path: Path, make: Callable[[Path], Path], reason: str, remedy: str
) -> None:
    path = make(tmp_path)
    found = collect([path])
    [problem] = found.problems
    assert found.photos == []
    assert problem.field == str(path)
    assert reason in problem.message
    assert remedy in problem.remedy


def test_the_bomb_is_small_on_disk(tmp_path: Path) -> None:
    assert files.bomb_png(tmp_path).stat().st_size < 30_000


def test_every_bad_file_is_named_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    files.good_photos(tmp_path, 2)
    bad = [make(tmp_path) for make in (files.text_named_jpg, files.truncated_jpeg, files.animated_gif, files.tiny_png)]
    found = collect(tmp_path)
    assert sorted(problem.field for problem in found.problems) == sorted(str(path) for path in bad)
    assert len(found.photos) == 2


@pytest.mark.parametrize("make", [files.cmyk_jpeg, files.mpo_named_jpg])
def test_unusual_jpegs_are_taken(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = collect(make(tmp_path))
    assert found.problems == []
    assert open_photo(found.photos[0].data).mode == "RGB"


def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    found = collect(files.sideways_jpeg(tmp_path))
    assert open_photo(found.photos[0].data).size == (64, 96)


def test_a_pil_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    found = collect(Image.open(files.sideways_jpeg(tmp_path)))
    assert open_photo(found.photos[0].data).size == (64, 96)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"])
def test_pil_images_of_every_mode_are_taken(mode: str) -> None:
    image = Image.new(mode, (40, 40)) if mode in ("I;16", "F") else files.picture(40, 40).convert(mode)
    assert collect([image]).problems == []


@pytest.mark.skipif(not CANDLE_MPO.exists(), reason="the photos of a real phone are not beside this checkout")
def test_the_mpo_of_a_real_phone_is_taken() -> None:
    found = collect(CANDLE_MPO)
    assert found.problems == []
    assert len(found.photos) == 1


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="the heif extra is installed")
def test_heic_without_the_extra_names_the_extra(tmp_path: Path) -> None:
    [problem] = collect(files.heic(tmp_path)).problems
    assert "HEIC" in problem.message
    assert "booth[heif]" in problem.remedy


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    [problem] = collect(tmp_path).problems
    assert problem.field == "images"
    assert str(tmp_path) in problem.value


def test_a_glob_without_matches_is_named(tmp_path: Path) -> None:
    [problem] = collect(str(tmp_path / "*.jpg")).problems
    assert "no photo" in problem.message


def test_sixty_photos_are_refused_without_reading_them(tmp_path: Path) -> None:
    [problem] = collect([tmp_path / f"{number}.jpg" for number in range(60)]).problems
    assert "60 photos, and 50 are the most" in problem.message


def test_a_photo_given_twice_is_used_once(tmp_path: Path) -> None:
    [path] = files.good_photos(tmp_path, 1)
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(path.read_bytes())
    found = collect([path, copy])
    assert len(found.photos) == 1
    assert "copy.jpg is the same photo" in found.warnings[0]


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(26 * 2**20)
    [problem] = collect(path).problems
    assert "26 MiB" in problem.message
    assert "at most 25 MiB" in problem.remedy


@pytest.mark.parametrize("thing", [7, None, 3.5])
def test_what_is_no_photo_at_all_is_named(thing: object) -> None:
    [problem] = collect([thing]).problems  # type: ignore[list-item]
    assert f"It is a {type(thing).__name__}" in problem.message
