"""Rows and columns of pictures as one labelled picture. Pure; Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

MIN_CELL_PX, MAX_CELL_PX = 128, 256
GAP_PX = 8
LABEL_PX = 200
HEADER_PX = 32
FONT_PX = 16
LINE_PX = 20
INK = (30, 30, 30)
PAPER = (255, 255, 255)


def strip(rows: Sequence[str], columns: Sequence[str], pictures: Sequence[Sequence[Image]]) -> Image:
    """`pictures[column][row]` on white, row labels to the left, column labels above.

    Every picture lies whole in a square cell as large as the largest picture, but 128 px at least and 256 px at most.
    Raises ValueError where there is no picture, or where a cell has none.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not rows or not columns or [len(column) for column in pictures] != [len(rows)] * len(columns):
        counts = [len(column) for column in pictures]
        raise ValueError(f"Columns of {counts} pictures do not fill {len(rows)} rows and {len(columns)} columns.")
    sides = [side for column in pictures for picture in column for side in picture.size]
    cell_px = min(MAX_CELL_PX, max(MIN_CELL_PX, *sides))
    pitch = cell_px + GAP_PX
    sheet = Image.new("RGB", (LABEL_PX + len(columns) * pitch, HEADER_PX + len(rows) * pitch), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for row, label in enumerate(rows):
        text = "\n".join(_lines(label, font, LABEL_PX - 2 * GAP_PX, cell_px // LINE_PX))
        middle = (GAP_PX, HEADER_PX + row * pitch + cell_px // 2)
        pen.multiline_text(middle, text, fill=INK, font=font, anchor="lm")
    for column, (label, drawn) in enumerate(zip(columns, pictures, strict=True)):
        left = LABEL_PX + column * pitch
        pen.text((left + cell_px // 2, HEADER_PX // 2), label, fill=INK, font=font, anchor="mm")
        for row, picture in enumerate(drawn):
            cell = fitted(picture, cell_px)
            top = HEADER_PX + row * pitch
            sheet.paste(cell, (left + (cell_px - cell.width) // 2, top + (cell_px - cell.height) // 2))
    return sheet


def fitted(picture: Image, side_px: int) -> Image:
    """The whole picture, its longer side `side_px`."""
    from PIL import Image

    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _lines(text: str, font: FreeTypeFont | ImageFont, width_px: int, most: int) -> list[str]:
    """The text in lines no wider than `width_px`; what goes beyond `most` lines is cut, and a long word broken."""
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width_px:
                lines.append("")
            lines[-1] += letter
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:-3]}..."]
