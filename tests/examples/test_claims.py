"""The verdicts on tinyworld's claims, from made-up scores: each holds where it should and falls where it should."""

import claims
import pytest
from claim_arms import (
    ARMS,
    ARMS_OF_CLAIMS,
    FROZEN_TEXT,
    INVERSION,
    LIMITS,
    NO_NOUN,
    NO_PRIOR,
    PRIOR,
    WRONG_NOUN,
    wrong_noun,
)
from made_up_scores import as_in_table_3, row, rows_of
from world import NOUNS, SUBJECTS


def test_prior_preservation_holds_where_the_class_stays_and_the_subject_costs_a_little():
    verdict = claims.prior_preservation(as_in_table_3())
    assert verdict.holds
    by_name = {finding.what: finding for finding in verdict.findings}
    assert by_name["PRES, no prior at 600 steps - base"].interval.mean == pytest.approx(0.8)
    assert by_name["DIV at 600 steps, prior - no prior"].interval.mean == pytest.approx(0.2)
    assert by_name["CLIP-I at 600 steps, prior - no prior"].holds is None


@pytest.mark.parametrize(
    ("pres_with", "pres_without"), [(0.36, 0.9), (0.2, 0.49)], ids=["with it the class goes", "without it stays"]
)
def test_it_does_not_hold_beyond_either_bound(pres_with, pres_without):
    assert claims.prior_preservation(as_in_table_3(pres_with, pres_without)).holds is False


def test_arms_are_compared_at_their_last_common_end():
    longer = [*as_in_table_3(), *rows_of(NO_PRIOR, 900, dino=0.95, pres=0.95, div=0.05, clip_i=0.9)]
    assert claims.prior_preservation(longer).findings[0].what == "PRES, no prior at 600 steps - base"


def test_at_equal_fidelity_both_curves_are_read_where_they_first_reach_it():
    rows = [
        *rows_of(PRIOR, 0, dino=0.0, pres=0.1, div=0.5),
        *rows_of(PRIOR, 300, dino=0.4, pres=0.2, div=0.4),
        *rows_of(PRIOR, 600, dino=0.8, pres=0.3, div=0.3),
        *rows_of(NO_PRIOR, 0, dino=0.0, pres=0.1, div=0.5),
        *rows_of(NO_PRIOR, 150, dino=1.0, pres=1.1, div=0.0),
    ]
    pres, div = claims.prior_at_equal_fidelity(rows).findings
    # The lower of both best fidelities is 0.8: the prior's end, and four fifths of the way of the other.
    assert (pres.interval.mean, div.interval.mean) == (pytest.approx(0.3 - 0.9), pytest.approx(0.3 - 0.1))
    assert (pres.holds, div.holds) == (True, True)


def nouns(correct, wrong, none, step):
    arms = ((NO_PRIOR, correct), (WRONG_NOUN, wrong), (NO_NOUN, none))
    return [each for arm, dino in arms for each in rows_of(arm, step, dino=dino)]


def test_the_noun_is_asserted_over_the_small_budgets_and_told_at_all():
    rows = [*nouns(0.3, 0.3, 0.4, 15), *nouns(0.7, 0.4, 0.5, 30), *nouns(0.9, 0.95, 0.95, 300)]
    verdict = claims.class_noun(rows)
    assert verdict.holds
    asserted = {finding.what: finding.interval.mean for finding in verdict.findings if finding.holds is not None}
    assert asserted == {
        "subject fidelity, mean of 15 and 30 steps, correct - none": pytest.approx(0.05),
        "subject fidelity, mean of 15 and 30 steps, correct - wrong": pytest.approx(0.15),
    }
    assert len(verdict.findings) == 2 + 3 * 3


@pytest.mark.parametrize(("wrong", "none"), [(0.3, 0.7), (0.7, 0.3)], ids=["none is as good", "wrong is as good"])
def test_the_noun_does_not_hold_where_another_is_as_good(wrong, none):
    assert claims.class_noun([*nouns(0.6, wrong, none, 15), *nouns(0.7, wrong, none, 30)]).holds is False


def test_the_small_budgets_count_together_or_not_at_all():
    assert claims.class_noun(nouns(0.6, 0.5, 0.4, 15)).holds is None


@pytest.mark.parametrize(("theirs", "context", "holds"), [(0.4, 0.95, True), (0.55, 0.95, False), (0.4, 0.89, False)])
def test_textual_inversion_is_beaten_by_enough_with_the_context_right(theirs, context, holds):
    rows = [*rows_of(PRIOR, 600, dino=0.8, context=context), *rows_of(INVERSION, 1500, dino=theirs, context=1.0)]
    assert claims.over_textual_inversion(rows).holds is holds


def test_the_text_encoder_is_told_with_its_cost():
    rows = [
        *rows_of(PRIOR, 600, dino=0.8, context=0.9, clip_t=0.5, pres=0.2, unseen_dino=0.7),
        *rows_of(FROZEN_TEXT, 600, dino=0.6, context=1.0, clip_t=0.6, pres=0.1, unseen_dino=0.6),
    ]
    verdict = claims.text_encoder(rows)
    assert verdict.holds
    assert [round(finding.interval.mean, 2) for finding in verdict.findings] == [0.2, 0.1, -0.1, -0.1, 0.1]


@pytest.mark.parametrize(
    ("told", "holds"),
    [
        ({"memorised": [4]}, True),
        ({"warnings": ["Memorised? DINO is above the ceiling 0.900 for: in the jungle."]}, True),
        ({"memorised": [0, 3]}, False),
        ({"warnings": ["Memorised? DINO is above the ceiling 0.900 for: in the kitchen."]}, False),
        ({}, False),
    ],
    ids=["a picture of the scene", "the scene above the ceiling", "other pictures", "another scene", "nothing"],
)
def test_the_memorisation_warning_has_to_fire_on_the_training_scene(told, holds):
    rows = [row("dog", LIMITS, 600), row("teapot", LIMITS, 600, **told), row("cat", LIMITS, 0, memorised=[4])]
    assert claims.memorisation(rows).holds is holds


def test_seeds_are_averaged_before_subjects():
    rows = [
        row("teapot", PRIOR, 600, seed=0, dino=0.0), row("teapot", PRIOR, 600, seed=1, dino=1.0),
        row("dog", PRIOR, 600, seed=0, dino=0.5),
    ]  # fmt: skip
    assert claims.figures(rows, PRIOR, 600, "dino") == {"teapot": 0.5, "dog": 0.5}


def test_half_a_comparison_is_no_verdict():
    for arm in ARMS:
        one_arm = rows_of(arm, 600, dino=0.9, pres=0.1, div=0.1, clip_i=0.5, clip_t=0.5, context=1.0)
        verdicts = {name: claim(one_arm) for name, claim in claims.CLAIMS.items() if name != "limits"}
        assert all(verdict.holds is None for verdict in verdicts.values())


def test_without_cells_there_is_no_verdict():
    for claim in claims.CLAIMS.values():
        assert claim([]).holds is None
        assert claim(rows_of("another arm", 600, dino=0.5)).holds is None


def test_every_claim_has_its_arms_and_every_arm_a_claim():
    assert ARMS_OF_CLAIMS.keys() == claims.CLAIMS.keys()
    assert {name for names in ARMS_OF_CLAIMS.values() for name in names} == ARMS.keys()


def test_arms_differ_in_one_thing_alone():
    teapot = SUBJECTS[0]
    changes = {name: arm.changes(teapot) for name, arm in ARMS.items()}
    scorings = {name: each["scoring"] for name, each in changes.items()}
    varied = {"steps", "phrase", "prompts", "unseen"}
    settings = {name: scoring.model_dump(exclude=varied) for name, scoring in scorings.items()}
    assert all(each == settings[PRIOR] for each in settings.values())
    assert all(scorings[name].prompts == scorings[PRIOR].prompts for name in ARMS if name != LIMITS)
    assert len(scorings[PRIOR].unseen) == 4
    assert scorings[LIMITS].unseen == [scorings[PRIOR].unseen[0]]
    assert scorings[NO_NOUN].phrase == scorings[INVERSION].phrase == "sks"
    assert changes[NO_NOUN]["instance_prompt"] == "a photo of sks"
    assert "instance_prompt" not in changes[INVERSION]
    assert (changes[WRONG_NOUN]["class_noun"], scorings[WRONG_NOUN].noun) == (wrong_noun("teapot"), "teapot")
    assert scorings[WRONG_NOUN].phrase == f"sks {wrong_noun('teapot')}"


def test_every_noun_is_a_subjects_and_the_wrong_ones_are_others():
    assert sorted(subject.noun for subject in SUBJECTS) == sorted(NOUNS)
    assert sorted(wrong_noun(noun) for noun in NOUNS) == sorted(NOUNS)
    assert all(wrong_noun(noun) != noun for noun in NOUNS)
