"""The labelled strip: what lies where, and that labels stay in their places."""

import numpy as np
import pytest
from PIL import Image

from booth.strip import GAP_PX, HEADER_PX, LABEL_PX, MAX_CELL_PX, MIN_CELL_PX, PAPER, strip

COLOURS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (200, 200, 0)], [(0, 200, 200), (90, 0, 90)]]  # [column][row]


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (128, 128)) -> Image.Image:
    return Image.new("RGB", size, colour)


def pictures(size: tuple[int, int] = (128, 128)) -> list[list[Image.Image]]:
    return [[plain(colour, size) for colour in column] for column in COLOURS]


def centre(column: int, row: int, cell_px: int) -> tuple[int, int]:
    pitch = cell_px + GAP_PX
    return LABEL_PX + column * pitch + cell_px // 2, HEADER_PX + row * pitch + cell_px // 2


@pytest.mark.parametrize(("side", "cell_px"), [(64, MIN_CELL_PX), (200, 200), (1024, MAX_CELL_PX)])
def test_prompts_are_rows_and_steps_are_columns(side: int, cell_px: int) -> None:
    sheet = strip(["one", "two"], ["step 1", "step 2", "step 3"], pictures((side, side)))
    assert sheet.size == (LABEL_PX + 3 * (cell_px + GAP_PX), HEADER_PX + 2 * (cell_px + GAP_PX))
    for column, colours in enumerate(COLOURS):
        for row, colour in enumerate(colours):
            assert sheet.getpixel(centre(column, row, cell_px)) == colour


def has_ink(sheet: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(sheet.crop(box)) != PAPER).any())


def test_every_row_and_column_is_labelled_and_an_empty_label_is_not() -> None:
    sheet = strip(["one", ""], ["step 1", "", "step 3"], pictures())
    pitch = 128 + GAP_PX
    rows = [has_ink(sheet, (0, HEADER_PX + row * pitch, LABEL_PX, HEADER_PX + (row + 1) * pitch)) for row in range(2)]
    lefts = [LABEL_PX + column * pitch for column in range(3)]
    assert rows == [True, False]
    assert [has_ink(sheet, (left, 0, left + pitch, HEADER_PX)) for left in lefts] == [True, False, True]


@pytest.mark.parametrize("label", ["a photo of sks dog " * 50, "w" * 1000])
def test_a_long_prompt_stays_beside_its_row(label: str) -> None:
    short, long = (strip(["one", text], ["s", "t", "u"], pictures()) for text in ("", label))
    changed = np.argwhere((np.asarray(short) != np.asarray(long)).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert top >= HEADER_PX + 128 + GAP_PX
    assert bottom < HEADER_PX + 2 * 128 + GAP_PX
    assert left >= GAP_PX - 2
    assert right < LABEL_PX


def test_pictures_of_another_shape_lie_whole_in_their_cells() -> None:
    sheet = strip(["one"], ["s"], [[plain((255, 0, 0), (200, 100))]])
    x, y = centre(0, 0, 200)
    assert [sheet.getpixel((x + dx, y)) for dx in (-99, 99)] == [(255, 0, 0)] * 2
    assert [sheet.getpixel((x, y + dy)) for dy in (-60, 60)] == [PAPER] * 2


@pytest.mark.parametrize(
    ("rows", "columns", "drawn"),
    [([], ["s"], [[]]), (["one"], [], []), (["one", "two"], ["s"], [[plain(PAPER)]]), (["one"], ["s"], [])],
)
def test_gaps_are_refused(rows: list[str], columns: list[str], drawn: list[list[Image.Image]]) -> None:
    with pytest.raises(ValueError, match="do not fill"):
        strip(rows, columns, drawn)
