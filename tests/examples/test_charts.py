"""Curves lie where their values are."""

from charts import COLOURS, PANEL_PX, Axes, curves, line_of
from made_up_scores import row, rows_of


def test_an_arms_mean_lies_at_its_step_in_its_colour():
    rows = [*rows_of("prior", 0, dino=0.0), *rows_of("prior", 600, dino=0.6), *rows_of("no prior", 600, dino=0.9)]
    chart = curves(rows, ("prior", "no prior"))
    axes = Axes(0, 600, 0.0, 1.0)
    for point, colour in (((0, 0.0), 0), ((300, 0.3), 0), ((600, 0.6), 0), ((600, 0.9), 1)):
        assert chart.getpixel(tuple(round(place) for place in axes.at(*point))) == COLOURS[colour]
    pres = chart.crop((PANEL_PX, 0, 2 * PANEL_PX, 200))
    assert not {colour for _, colour in pres.getcolors(10_000)} & set(COLOURS)  # nothing was measured there


def test_values_below_zero_widen_the_panel():
    axes = Axes(0, 600, -0.5, 1.0)
    chart = curves([row("dog", "prior", 0, dino=-0.5), row("dog", "prior", 600, dino=1.0)], ("prior",))
    assert chart.getpixel(tuple(round(place) for place in axes.at(0, -0.5))) == COLOURS[0]


def test_steps_without_the_metric_are_left_out():
    rows = [row("dog", "prior", 0), row("dog", "prior", 75, pres=0.5)]
    assert line_of(rows, "prior", "pres") == [(75, {"dog": 0.5})]
