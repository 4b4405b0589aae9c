"""The step that is published, by curves worked out by hand."""

import pytest

from booth.contract.scores import Score
from booth_service.evaluation.choice import is_only_worse, select_step, trade_offs

PICTURES = 20


def score(step: int, dino: float, clip_t: float, **more) -> Score:
    return Score(step=step, suite="tiny", dino=dino, clip_t=clip_t, ceiling_dino=0.8, **more)


FLOOR = score(0, 0.3, 0.30)


def test_the_harmonic_mean_of_both_normalised_fidelities_decides():
    """Subject: (0.4 - 0.3) / (0.8 - 0.3) = 0.2, then 0.8, 0.98; prompt: 0.3 / 0.3 = 1, then 0.9, 0.5."""
    curve = [FLOOR, score(100, 0.4, 0.30), score(200, 0.7, 0.27), score(300, 0.79, 0.15)]
    found = trade_offs(curve, PICTURES)
    assert [each.subject for each in found] == pytest.approx([0.2, 0.8, 0.98])
    assert [each.prompt for each in found] == pytest.approx([1.0, 0.9, 0.5])
    assert [each.value for each in found] == pytest.approx([1 / 3, 1.44 / 1.7, 0.98 / 1.48])
    choice = select_step(curve, PICTURES)
    assert choice.step == 200
    assert "0.847 of subject fidelity 0.800 and prompt fidelity 0.900, among steps 100, 200, 300" in choice.why


def test_of_equal_steps_the_earlier_is_taken_whatever_their_order():
    curve = [score(200, 0.6, 0.3), FLOOR, score(100, 0.6, 0.3)]
    assert select_step(curve, PICTURES).step == 100


def test_a_step_that_repeats_the_photos_loses_however_high_its_trade_off():
    some = [FLOOR, score(100, 0.5, 0.3), score(200, 0.75, 0.3, memorised=[0, 1, 2])]
    assert select_step(some, PICTURES).step == 100
    assert "pictures of steps 200 repeat the photos" in select_step(some, PICTURES).why
    above_the_ceiling = [FLOOR, score(100, 0.5, 0.3), score(200, 0.81, 0.3)]
    assert select_step(above_the_ceiling, PICTURES).step == 100
    by_chance = [FLOOR, score(100, 0.5, 0.3), score(200, 0.75, 0.3, memorised=[0, 1])]
    assert select_step(by_chance, PICTURES).step == 200


def test_where_all_steps_repeat_the_photos_the_best_of_them_is_taken_and_said():
    curve = [FLOOR, score(100, 0.9, 0.3), score(200, 0.9, 0.2)]
    choice = select_step(curve, PICTURES)
    assert choice.step == 100
    assert "those of all steps repeat the photos" in choice.why


def test_attributes_say_more_than_clip_where_the_encoders_have_them():
    """Prompt fidelity: 0.4 / 0.8 against 0.8 / 0.8, though CLIP-T says the contrary."""
    floor = FLOOR.model_copy(update={"accuracies": {"context": 0.9, "noun": 0.7}})
    curve = [
        floor,
        score(100, 0.7, 0.30, accuracies={"context": 0.5, "noun": 0.3}),
        score(200, 0.7, 0.10, accuracies={"context": 0.9, "noun": 0.7}),
    ]
    assert [each.prompt for each in trade_offs(curve, PICTURES)] == pytest.approx([0.5, 1.0])
    assert select_step(curve, PICTURES).step == 200


def test_the_frozen_base_is_never_chosen_and_without_a_score_there_is_no_choice():
    assert select_step([FLOOR], PICTURES).step is None
    assert select_step([], PICTURES).why == "no step of the run has a score"
    assert select_step([FLOOR, score(100, 0.3, 0.1)], PICTURES).step == 100


def test_without_the_floor_the_choice_says_so():
    choice = select_step([score(100, 0.4, 0.3), score(200, 0.7, 0.28)], PICTURES)
    assert choice.step == 200
    assert choice.why.endswith("without the frozen base as floor")


def test_one_photo_has_no_ceiling_and_is_measured_against_1():
    curve = [Score(step=step, suite="tiny", dino=dino, clip_t=0.3) for step, dino in ((0, 0.2), (100, 0.6))]
    assert [each.subject for each in trade_offs(curve, PICTURES)] == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("dinos", "patience", "is_over"),
    [
        ([0.5, 0.7, 0.6, 0.5], 2, True),
        ([0.5, 0.7, 0.6, 0.5], 3, False),
        ([0.5, 0.7, 0.6, 0.72], 2, False),
        ([0.5, 0.7, 0.7, 0.6], 2, False),
        ([0.7, 0.6], 2, False),
        ([0.7, 0.6], 0, False),
    ],
)
def test_a_curve_is_over_when_it_has_only_got_worse(dinos, patience, is_over):
    curve = [FLOOR, *(score(100 * n, dino, 0.3) for n, dino in enumerate(dinos, 1))]
    assert is_only_worse(trade_offs(curve, PICTURES), patience) is is_over
