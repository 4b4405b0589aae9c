"""The report's page and sheet: what stands on them, and that the page needs nothing else."""

import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from booth.contract.attempts import StoredFile
from booth.contract.evaluation import Report, ReportRow
from booth.contract.jobs import PromptCase
from booth.contract.scores import Score, ScoredPicture
from booth_service.evaluation.report import picture_keys, report_html
from booth_service.evaluation.sheet import sheet_keys, sheet_of, sheet_png
from booth_service.evaluation.table import lines
from booth_service.evaluation.thumbnails import SMALLEST_PX, side_px, thumbnail, thumbnail_of

PLACES = ["in the snow", "on the <beach>"]


def png(red: int, size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (red, 60, 90)).save(out, "PNG")
    return out.getvalue()


def picture(name: str, case: int, seed: int, **more) -> ScoredPicture:
    return ScoredPicture(case=case, seed=seed, key=f"{name}/{case}-{seed}", bytes=1, sha256="0" * 64, **more)


def row(subject: str, arm: str, step: int, dino: float, **more) -> ReportRow:
    cases = [
        PromptCase(kind="own", prompt=f"a {arm} {place}", text="", clip_text="", label=place, is_unseen=bool(number))
        for number, place in enumerate(PLACES)
    ]
    pictures = [
        picture(f"{subject}/{arm}/{step}", case, seed, dino=0.5, clip_t=0.25) for case in (0, 1) for seed in (0, 1)
    ]
    score = Score(
        step=step, suite="tiny", dino=dino, clip_t=0.3, pres=0.4, ceiling_dino=0.8, cases=cases, pictures=pictures,
        class_pictures=[picture(f"{subject}/class", 0, 9)], **more,
    )  # fmt: skip
    return ReportRow(subject=subject, arm=arm, score=score)


def photo(subject: str) -> StoredFile:
    return StoredFile(path="00.png", key=f"{subject}/photo", bytes=1, sha256="0" * 64)


MEMORISED = {"memorised": [2], "warnings": ["Memorised? 1 of 4 pictures is nearer to a photo than photos are."]}
ONE = Report(
    title="Evaluation of <b>dog</b>",
    rows=[row("dog", "sks dog", 30, 0.7, **MEMORISED), row("dog", "frozen base", 0, 0.2)],
    photos={"dog": [photo("dog")]},
    definitions={"dino": "Mean cosine."},
    settings={"guidance scale": "4"},
)
MANY = Report(
    title="Many",
    rows=[
        row(subject, arm, step, dino)
        for subject, shift in (("cat", 0.0), ("dog", 0.1), ("cup", 0.2))
        for arm, step, dino in (
            ("with prior", 30, 0.5 + shift),
            ("with prior", 60, 0.6 + shift),
            ("base", 0, 0.1 + shift),
        )
    ],
    photos={subject: [photo(subject)] for subject in ("cat", "dog", "cup")},
)


def shown(report: Report) -> dict[str, bytes]:
    return {key: thumbnail_of(png(number % 256), 128) for number, key in enumerate(picture_keys(report))}


class Links(HTMLParser):
    """Tags that are open, and whatever the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("report", [ONE, MANY], ids=["one subject", "several"])
def test_the_page_is_whole_and_needs_nothing_else(report: Report) -> None:
    page = report_html(report, shown(report), {"curves.png": png(1)})
    links = Links()
    links.feed(page)
    assert links.open == []
    assert {link.partition(":")[0] for link in links.asked if not link.startswith("#")} == {"data"}
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert "url(" not in page
    assert links.tags.count("img") == len(picture_keys(report)) + 1
    assert 'name="viewport"' in page


def test_the_page_says_figures_with_ceiling_and_floor_and_what_is_memorised() -> None:
    page = report_html(ONE, shown(ONE))
    (table,) = re.findall(r"<tbody>.*?</tbody>", page, re.DOTALL)
    ours, base = table.split("</tr>")[:2]
    assert "<b>0.700</b>" in ours
    assert "ceiling 0.800<br>floor 0.200" in ours
    assert "1 picture, 1 warning" in ours
    assert "<b>0.200</b>" in base
    assert "floor" not in base
    assert '<section id="warnings">' in page
    assert page.count('class="memorised"') == 1
    assert page.count("like a photo") == 1
    assert "no photo shows this" in page
    assert "Mean cosine." in page
    assert "guidance scale" in page


def test_what_users_wrote_is_text_and_a_lost_picture_an_empty_place() -> None:
    pictures = shown(ONE)
    del pictures["dog/sks dog/30/0-1"]
    page = report_html(ONE, pictures)
    assert "<b>dog</b>" not in page
    assert "&lt;b&gt;dog&lt;/b&gt;" in page
    assert "a sks dog on the &lt;beach&gt;" in page
    assert page.count('class="gone"') == 1


def test_several_subjects_are_averaged_with_an_interval_each_beside_its_own_floor() -> None:
    found = lines(MANY.rows)
    assert [(line.arm, line.step) for line in found] == [("with prior", 30), ("with prior", 60), ("base", 0)]
    first = found[0].figures["dino"]
    assert (first.mean, first.subjects) == (pytest.approx(0.6), 3)
    assert first.low < first.mean < first.high
    assert found[0].floors["dino"] == pytest.approx(0.2)
    assert found[0].ceilings["dino"] == pytest.approx(0.8)
    page = report_html(MANY, shown(MANY))
    assert "with prior, step 60" in page
    assert "[" in re.findall(r"<tbody>.*?</tbody>", page, re.DOTALL)[0]
    assert "<details open>" in page


def test_a_report_of_three_thousand_pictures_stays_small() -> None:
    assert [side_px(count) for count in (300, 1500, 3000)] == [256, 160, SMALLEST_PX]
    noise = Image.effect_noise((512, 512), 60).convert("RGB")  # the worst that a picture can be
    assert len(thumbnail(noise, side_px(3_000))) * 3_000 * 4 / 3 < 30 * 2**20


def test_small_copies_are_upright_and_never_larger() -> None:
    tall = Image.open(io.BytesIO(thumbnail_of(png(9, (100, 400)), 128)))
    assert (tall.format, tall.size) == ("WEBP", (32, 128))
    small = thumbnail_of(png(9, (40, 30)), 128)
    assert Image.open(io.BytesIO(small)).size == (40, 30)
    assert thumbnail_of(small, 128) is small


def test_the_sheet_of_one_subject_has_a_row_for_each_prompt_and_a_column_for_each_arm() -> None:
    sheet = sheet_of(ONE)
    assert sheet.columns == ["sks dog", "frozen base"]
    assert [each.label for each in sheet.rows] == PLACES
    assert [cell.key for cell in sheet.rows[1].cells] == ["dog/sks dog/30/1-0", "dog/frozen base/0/1-0"]
    assert [cell.is_memorised for cell in sheet.rows[1].cells] == [True, False]
    pictures = {key: png(50 * number, (256, 256)) for number, key in enumerate(sheet_keys(ONE))}
    drawn = Image.open(io.BytesIO(sheet_png(ONE, pictures)))
    colours = {colour for _, colour in drawn.getcolors(2**20)}
    assert {(50 * number, 60, 90) for number in range(5)} <= colours
    lacking = {key: body for key, body in pictures.items() if key != "dog/photo"}
    assert Image.open(io.BytesIO(sheet_png(ONE, lacking))).size == drawn.size


def test_the_sheet_of_several_subjects_has_a_row_for_each() -> None:
    sheet = sheet_of(MANY)
    assert sheet.columns == ["a photo", "with prior, step 30", "with prior, step 60", "base"]
    assert [each.label for each in sheet.rows] == ["cat", "dog", "cup"]
    assert [cell.key for cell in sheet.rows[1].cells] == [
        "dog/photo",
        "dog/with prior/30/1-0",
        "dog/with prior/60/1-0",
        "dog/base/0/1-0",
    ]
    sheet_png(MANY, shown(MANY))


def test_a_report_without_pictures_has_a_table_alone() -> None:
    bare = ONE.model_copy(
        update={
            "photos": {},
            "rows": [
                row.model_copy(update={"score": row.score.model_copy(update={"pictures": []})}) for row in ONE.rows
            ],
        }
    )
    assert sheet_keys(bare) == []
    assert "<b>0.700</b>" in report_html(bare, {})
    assert "There is no score." in report_html(Report(title="t", rows=[]), {})
