"""A report as one picture: photos, then a row for each prompt (or subject) and a column for each arm. Pure; Pillow
alone."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont

from booth.contract.evaluation import Report, ReportRow
from booth_service.evaluation.table import lines

Item = TypeVar("Item")
MOST_ROWS, MOST_COLUMNS = 16, 12
MIN_CELL_PX, MAX_CELL_PX, GAP_PX, LABEL_PX, HEADER_PX, TITLE_PX = 112, 224, 8, 190, 52, 44
FONT_PX, LINE_PX, TITLE_FONT_PX = 14, 17, 20
INK, SOFT, PAPER, WARN = (28, 29, 33), (106, 109, 118), (252, 252, 250), (168, 72, 10)


@dataclass(frozen=True)
class Cell:
    """A picture by key, and what is said of it."""

    key: str
    is_memorised: bool = False


@dataclass(frozen=True)
class Row:
    """A row: what it shows, and its cells; None leaves a place empty."""

    label: str
    cells: list[Cell | None]


@dataclass(frozen=True)
class Sheet:
    """What stands where. The photos of a single subject lie above the columns."""

    title: str
    photos: list[Cell]
    columns: list[str]
    rows: list[Row]

    @property
    def keys(self) -> list[str]:
        """Every picture on it, each once."""
        cells = [*self.photos, *(cell for row in self.rows for cell in row.cells)]
        return list(dict.fromkeys(cell.key for cell in cells if cell is not None))


def sheet_keys(report: Report) -> list[str]:
    """The pictures that `sheet_png` asks for."""
    return sheet_of(report).keys


def sheet_of(report: Report) -> Sheet:
    """Of one subject a row for each prompt; of several, one for each subject, each at another prompt. At most
    MOST_ROWS, evenly spread, and MOST_COLUMNS."""
    arms = [each.rows for each in lines([row for row in report.rows if row.score.pictures])][:MOST_COLUMNS]
    names = [_name(rows[0], arms) for rows in arms]
    subjects = list(dict.fromkeys(row.subject for rows in arms for row in rows))
    if len(subjects) == 1:
        photos = [Cell(photo.key) for photo in report.photos.get(subjects[0], [])][:MOST_COLUMNS]
        cases = range(max(len(rows[0].score.cases) for rows in arms))
        found = [Row(_label(arms, case), [_first(rows, subjects[0], case) for rows in arms]) for case in _spread(cases)]
        return Sheet(report.title, photos, names, found)
    found = [
        Row(subject, [_photo(report, subject), *(_first(rows, subject, number) for rows in arms)])
        for number, subject in enumerate(_spread(subjects))
    ]
    return Sheet(report.title, [], ["a photo", *names], found)


def sheet_png(report: Report, pictures: Mapping[str, bytes]) -> bytes:
    """The sheet as PNG. `pictures` are files by key, at any size; one that is missing leaves its place empty."""
    sheet = sheet_of(report)
    images = {key: Image.open(io.BytesIO(pictures[key])).convert("RGB") for key in sheet.keys if key in pictures}
    sides = [side for image in images.values() for side in image.size]
    cell_px = min(MAX_CELL_PX, max(MIN_CELL_PX, *sides)) if sides else MIN_CELL_PX
    pitch = cell_px + GAP_PX
    strips = 1 if sheet.photos else 0
    columns = max(len(sheet.columns), len(sheet.photos))
    width = LABEL_PX + max(1, columns) * pitch + GAP_PX
    height = TITLE_PX + strips * pitch + HEADER_PX + len(sheet.rows) * pitch + GAP_PX
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP_PX, TITLE_PX // 2), sheet.title, fill=INK, font=ImageFont.load_default(TITLE_FONT_PX), anchor="lm")
    top = TITLE_PX
    if sheet.photos:
        _draw_row(page, pen, top, Row("photos", list(sheet.photos)), images, cell_px)
        top += pitch
    for place, name in enumerate(sheet.columns):
        middle = (LABEL_PX + place * pitch + cell_px // 2, top + HEADER_PX // 2)
        text = _wrapped(name, cell_px, HEADER_PX // LINE_PX)
        pen.multiline_text(middle, text, fill=INK, font=_font(), anchor="mm", align="center", spacing=2)
    for place, row in enumerate(sheet.rows):
        _draw_row(page, pen, top + HEADER_PX + place * pitch, row, images, cell_px)
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw_row(
    page: Image.Image, pen: ImageDraw.ImageDraw, top: int, row: Row, images: Mapping[str, Image.Image], cell_px: int
) -> None:
    text = _wrapped(row.label, LABEL_PX - 2 * GAP_PX, cell_px // LINE_PX)
    pen.multiline_text((GAP_PX, top + cell_px // 2), text, fill=INK, font=_font(), anchor="lm", spacing=2)
    for place, cell in enumerate(row.cells):
        left = LABEL_PX + place * (cell_px + GAP_PX)
        image = images.get(cell.key) if cell is not None else None
        if cell is None or image is None:
            pen.text((left + cell_px // 2, top + cell_px // 2), "-", fill=SOFT, font=_font(), anchor="mm")
            continue
        scale = cell_px / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS)
        page.paste(small, (left + (cell_px - small.width) // 2, top + (cell_px - small.height) // 2))
        if cell.is_memorised:
            pen.rectangle((left, top, left + cell_px - 1, top + cell_px - 1), outline=WARN, width=3)


def _name(row: ReportRow, arms: Sequence[Sequence[ReportRow]]) -> str:
    alike = sum(rows[0].arm == row.arm for rows in arms)
    return f"{row.arm}, step {row.score.step}" if alike > 1 else row.arm


def _label(arms: Sequence[Sequence[ReportRow]], case: int) -> str:
    cases = arms[0][0].score.cases
    return (cases[case].label or cases[case].prompt) if case < len(cases) else ""


def _first(rows: Sequence[ReportRow], subject: str, number: int) -> Cell | None:
    """The arm's first picture of case `number`, counted round, of the subject."""
    score = next((row.score for row in rows if row.subject == subject and row.score.cases), None)
    if score is None:
        return None
    case = number % len(score.cases)
    found = ((place, each) for place, each in enumerate(score.pictures) if each.case == case)
    return next((Cell(each.key, place in score.like_a_photo) for place, each in found), None)


def _photo(report: Report, subject: str) -> Cell | None:
    photos = report.photos.get(subject, [])
    return Cell(photos[0].key) if photos else None


def _spread(items: Sequence[Item]) -> list[Item]:
    count = min(len(items), MOST_ROWS)
    return [items[number * len(items) // count] for number in range(count)]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)


def _wrapped(text: str, width_px: int, most: int) -> str:
    """The text in at most so many lines, none wider; what goes beyond is cut."""
    font, rows = _font(), [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if not rows[-1] or font.getlength(longer) <= width_px:
            rows[-1] = longer
        else:
            rows.append(word)
    while any(font.getlength(row) > width_px for row in rows):
        rows = [row if font.getlength(row) <= width_px else f"{row[:-2]}…" for row in rows]
    return "\n".join(rows if len(rows) <= most else [*rows[: most - 1], f"{rows[most - 1]} …"])
