"""One picture of many: labelled rows of equal cells."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from booth.strip import fitted

CELL_PX = 192
GAP_PX = 8
LABEL_PX = 230
FONT_PX = 18
LABEL_CHARS = 24
INK = (30, 30, 30)
PAPER = (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """Pictures side by side, and what they are."""

    label: str
    pictures: Sequence[Image.Image]


def contact_sheet(rows: Sequence[Row], cell_px: int = CELL_PX) -> Image.Image:
    """The rows below each other on white, labels to their left, every picture fitted into a square of `cell_px`."""
    columns = max(len(row.pictures) for row in rows)
    pitch = cell_px + GAP_PX
    sheet = Image.new("RGB", (LABEL_PX + columns * pitch + GAP_PX, len(rows) * pitch + GAP_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_PX)
    for number, row in enumerate(rows):
        top = GAP_PX + number * pitch
        label = "\n".join(textwrap.wrap(row.label, LABEL_CHARS))
        pen.multiline_text((GAP_PX, top + cell_px // 2), label, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(row.pictures):
            cell = fitted(picture, cell_px)
            left = LABEL_PX + column * pitch + (cell_px - cell.width) // 2
            sheet.paste(cell, (left, top + (cell_px - cell.height) // 2))
    return sheet
