"""Reports of groups by hand-worked values: which score counts, means, paired differences, warnings, curves."""

import io

import pytest
from PIL import Image

from booth.contract.evaluation import ReportRow
from booth.contract.groups import CellLabels, CellRecord, GroupSettings
from booth.contract.jobs import JobFailure, PromptCase
from booth.contract.scores import Score, ScoredPicture
from booth.contract.states import FailureReason, JobState
from booth_service.evaluation import group_report, paper, plot
from booth_service.evaluation.plot import Curve, Panel, Point
from booth_service.evaluation.report import report_html


def cell(subject: str, arm: str, scores: dict[int, dict], seed: int = 0, **changes: object) -> CellRecord:
    made = [Score(step=step, suite="tiny", **figures) for step, figures in scores.items()]
    record = CellRecord(
        job_id=f"job-{subject}-{arm}-{seed}",
        labels=CellLabels(subject=subject, arm=arm, seed=seed, values={"prior_loss_weight": arm}),
        status=JobState.SUCCEEDED,
        scores=made,
        score_keys=[f"{subject}/{arm}/{seed}/{step}" for step in scores],
    )
    return record.model_copy(update=changes)


CELLS = [
    cell("rex", "with", {0: {"dino": 0.1}, 10: {"dino": 0.5, "pres": 0.2}}),
    cell("rex", "with", {10: {"dino": 0.7, "pres": 0.4}}, seed=1),
    cell("tom", "with", {10: {"dino": 0.4, "pres": 0.1}}),
    cell("rex", "without", {0: {"dino": 0.1}, 10: {"dino": 0.8, "pres": 0.9}}),
    cell("tom", "without", {5: {"dino": 0.2}, 10: {"dino": 0.6, "pres": 0.7}}),
]
SETTINGS = GroupSettings(kind="sweep", name="prior", baseline="with")


def test_the_chosen_step_counts_else_the_last() -> None:
    assert group_report.final_step(CELLS[0]) == 10
    assert group_report.final_step(CELLS[4].model_copy(update={"selected_step": 5})) == 5
    assert group_report.final_step(CELLS[4].model_copy(update={"selected_step": 7})) == 10, "it has no score"
    assert group_report.final_step(cell("rex", "a", {})) is None


def test_differences_are_paired_by_subject_and_seed() -> None:
    rows = group_report.final_rows(CELLS)
    found = group_report.paired(rows, "without", "with", lambda score: score.dino)
    assert found is not None
    assert found.mean == pytest.approx(((0.8 - 0.5) + (0.6 - 0.4)) / 2), "rex's seed 1 has no partner"
    assert (found.subjects, found.low, found.high) == (2, pytest.approx(0.2), pytest.approx(0.3))
    table = group_report.differences(rows, "with")
    assert table is not None
    assert table.head == ["Arm", "DINO", "PRES"]
    assert table.rows == [["without", "+0.250 [+0.200, +0.300]", "+0.650 [+0.600, +0.700]"]]
    assert group_report.differences(rows, None) is None
    assert group_report.differences(rows, "neither") is None


def test_subjects_are_listed_with_means_over_seeds() -> None:
    table = group_report.by_subject(group_report.final_rows(CELLS))
    assert table is not None
    assert table.rows == [
        ["rex", "with", "10", "0.600", "0.300"],
        ["tom", "with", "10", "0.400", "0.100"],
        ["rex", "without", "10", "0.800", "0.900"],
        ["tom", "without", "10", "0.600", "0.700"],
    ]


def test_means_are_subject_first_and_stand_below_the_photos() -> None:
    rows = group_report.final_rows([*CELLS, cell("tom", "with", {10: {"dino": 0.4, "ceiling_dino": 0.9}}, seed=1)])
    table = group_report.over_all(rows)
    assert table is not None
    assert (table.title, table.head) == ("Means over 2 subjects", ["Arm", "DINO", "PRES"])
    assert table.rows == [
        ["Real photos", "0.900", "-"],
        ["with", "0.500 [0.400, 0.600]", "0.200 [0.100, 0.300]"],
        ["without", "0.700 [0.600, 0.800]", "0.800 [0.700, 0.900]"],
    ]
    assert group_report.over_all([]) is None


def test_what_is_missing_is_said_with_its_reason() -> None:
    error = JobFailure(reason=FailureReason.NOT_FINITE, message="Not finite.", remedy="Lower it.", detail="step 3")
    broken = cell("tom", "with", {}, seed=2, status=JobState.FAILED, error=error)
    unscored = cell("rex", "with", {})
    assert group_report.warnings_of([CELLS[0], broken, unscored]) == [
        "tom, with, seed 2: failed: Not finite. step 3 (job-tom-with-2)",
        "rex, with: no score (job-rex-with-0)",
    ]


def test_the_paper_stands_beside_what_varies() -> None:
    titles = [table.title for table in paper.beside("sweep", {"prior_loss_weight", "steps"})]
    assert titles == [paper.TABLE_3.title]
    assert paper.beside("sweep", {"class_noun"}) == [paper.TABLE_4]
    assert paper.beside("benchmark", set()) == [paper.TABLE_1]
    assert paper.beside("sweep", {"steps"}) == []
    assert paper.TABLE_1.rows[2][1:] == ["0.668", "0.803", "0.305"]
    assert [row[1] for row in paper.TABLE_4.rows] == ["0.744", "0.454", "0.303"], "correct, wrong, none"


def test_the_report_shows_pictures_of_finals_and_first_floors() -> None:
    wanted = group_report.shown_scores(CELLS)
    assert [key for _, _, key in wanted] == [
        "rex/with/0/0", "rex/with/0/10", "rex/with/1/10", "tom/with/0/10", "rex/without/0/10", "tom/without/0/10",
    ]  # fmt: skip
    case = PromptCase(kind="own", prompt="a sks dog", text="a dog", clip_text="a dog")
    picture = ScoredPicture(case=0, seed=0, key="p", bytes=1, sha256="s")
    whole = {(CELLS[0].job_id, 10): Score(step=10, suite="tiny", cases=[case], pictures=[picture])}
    report = group_report.report_of(SETTINGS, CELLS, whole, {})
    with_pictures = [row for row in report.rows if row.score.pictures]
    assert [(row.subject, row.score.step, row.score.dino) for row in with_pictures] == [("rex", 10, 0.5)]
    assert [table.title for table in report.tables] == [
        paper.TABLE_3.title,
        "Means over 2 subjects",
        "Differences to with",
        "By subject",
    ]
    page = report_html(report, {}, {"curves.png": plot.curves_png(group_report.panels(CELLS))})
    assert "+0.250 [+0.200, +0.300]" in page
    assert 'alt="curves.png"' in page


def test_pictures_of_many_cells_are_shared_out() -> None:
    cells = [cell(f"s{number}", "a", {10: {"dino": 0.5}}) for number in range(1000)]
    pictures = [ScoredPicture(case=0, seed=k, key=f"p{k}", bytes=1, sha256="s") for k in range(9)]
    whole = {(each.job_id, 10): Score(step=10, suite="tiny", pictures=pictures) for each in cells}
    rows: list[ReportRow] = group_report.rows_of(cells, whole)
    assert {len(row.score.pictures) for row in rows} == {3}


def test_curves_are_means_over_subjects_of_arms_with_several_steps() -> None:
    dino, pres = group_report.panels(CELLS)
    assert [curve.name for curve in dino.curves] == ["with", "without"]
    assert [(point.step, round(point.mean, 6)) for point in dino.curves[1].points] == [(0, 0.1), (5, 0.2), (10, 0.7)]
    assert [(point.step, round(point.mean, 6)) for point in dino.curves[0].points] == [(0, 0.1), (10, 0.5)]
    assert [round(point.mean, 6) for point in pres.curves[0].points] == [0.2], "seeds first, then subjects"
    assert group_report.panels([cell("rex", "a", {10: {"dino": 0.5}})]) == []


@pytest.mark.parametrize(
    ("spread", "unit"), [(0.0, 0.1), (1.0, 0.5), (0.75, 0.2), (0.04, 0.01), (8.1, 5.0), (40, 10.0)]
)
def test_ticks_are_round(spread: float, unit: float) -> None:
    assert plot.tick_unit(spread) == pytest.approx(unit)


def test_axes_hold_points_and_whiskers() -> None:
    axes = plot.axes_of(Panel("DINO", [Curve("a", [Point(0, 0.1), Point(100, 0.5, 0.37, 0.62)])]))
    assert axes.steps == (0, 100)
    assert axes.values == (pytest.approx(0.0), pytest.approx(0.8))
    assert (axes.x(0), axes.x(100), axes.x(50)) == (plot.LEFT, plot.WIDTH - plot.RIGHT, (axes.left + axes.right) / 2)
    assert axes.y(0.0) == pytest.approx(plot.HEIGHT - plot.BOTTOM)
    assert axes.y(0.8) == pytest.approx(plot.TOP)


def test_the_picture_has_each_curve_in_its_colour_where_it_belongs() -> None:
    flat, high = [Point(0, 0.0), Point(100, 0.0)], [Point(0, 1.0), Point(100, 1.0)]
    panel = Panel("DINO", [Curve("flat", flat), Curve("high", high)])
    image = Image.open(io.BytesIO(plot.curves_png([panel, panel, panel, panel])))
    assert image.size == (3 * plot.WIDTH, 2 * plot.HEIGHT + 2 * plot.LEGEND_LINE)
    axes = plot.axes_of(panel)
    middle = round(axes.x(50))
    for value, colour in ((0.0, plot.colour_of(0)), (1.0, plot.colour_of(1))):
        seen = image.getpixel((middle, round(axes.y(value))))
        assert "#{:02X}{:02X}{:02X}".format(*seen) == colour
    assert image.getpixel((middle, round(axes.y(0.25)))) == (255, 255, 255)
    with pytest.raises(ValueError, match="several steps"):
        plot.curves_png([])
