"""A claim's curves have a line for each arm that was measured, and a panel for each metric that was."""

import io

import charts
import pytest
from made_up_scores import row, rows_of
from PIL import Image


def test_points_are_means_over_subjects_with_their_interval_by_step():
    rows = [row("dog", "prior", 75, dino=0.2), row("cat", "prior", 75, dino=0.4), row("dog", "prior", 0, dino=0.1)]
    start, end = charts.points_of(rows, "prior", "dino")
    assert (start.step, start.mean, start.low) == (0, pytest.approx(0.1), None)
    assert (end.step, end.mean) == (75, pytest.approx(0.3))
    assert (end.low, end.high) == (pytest.approx(0.2), pytest.approx(0.4))


def test_steps_and_arms_without_the_metric_are_left_out():
    rows = [row("dog", "prior", 0), row("dog", "prior", 75, pres=0.5), row("dog", "no prior", 75)]
    panel = charts.panel_of(rows, "prior", "pres", "PRES")
    assert [(curve.name, [point.step for point in curve.points]) for curve in panel.curves] == [("prior", [75])]


def test_the_picture_is_a_png_and_there_is_none_of_nothing():
    rows = [*rows_of("prior", 0, dino=0.0, context=1.0), *rows_of("prior", 600, dino=0.6, context=0.9)]
    picture = charts.curves(rows, "prior")
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    assert charts.curves(rows, "limits") is None
    assert charts.curves(rows_of("limits", 600, dino=0.9), "limits") is None, "one step is no curve"


def test_an_arm_is_called_by_the_part_that_it_plays():
    panel = charts.panel_of(rows_of("no prior", 30, dino=0.7), "noun", "dino", "subject fidelity")
    assert [curve.name for curve in panel.curves] == ["correct noun"]
