"""RESULTS.md says every verdict with its numbers, whichever way it fell."""

import claims
import results
from claim_arms import INVERSION, NO_PRIOR, PRIOR
from made_up_scores import as_in_table_3, row, rows_of

VALIDITY = {"renders": {"area": 0.99}, "after the autoencoder": {"area": 0.98}}


def page(rows, pictures=None):
    verdicts = {name: claim(rows) for name, claim in claims.CLAIMS.items()}
    return results.results_page(rows, verdicts, pictures or {}, VALIDITY, {"sampler": "8 steps"})


def section(text, name):
    return text.split(f"## {name}")[1].split("\n## ")[0]


def test_a_claim_that_holds_is_told_with_its_numbers_steps_and_pictures():
    text = page(as_in_table_3(), {"prior": ["reproduced/prior.png"]})
    assert "| Prior preservation keeps the class, at equal steps (Table 3) | **holds** |" in text
    said = section(text, "Prior preservation keeps the class, at equal steps")
    assert "| PRES, no prior at 600 steps - base | +0.800 [+0.800, +0.800] | >= 0.4 | yes |" in said
    assert "| no prior | 600 | 0.900 | 0.800 | - | 0.900 | 0.100 | 0.900 | - |" in said
    assert "![reproduced/prior.png](reproduced/prior.png)" in said


def test_one_that_does_not_hold_is_told_as_plainly():
    text = page(as_in_table_3(pres_with=0.7))
    assert "(Table 3) | **does not hold** |" in text
    assert "| PRES, prior at 600 steps - base | +0.600 [+0.600, +0.600] | <= 0.25 | **no** |" in text


def test_what_the_interval_does_not_settle_is_told_as_such():
    """DIV is higher in the mean, and lower for one subject of three."""
    rows = [each for each in as_in_table_3() if (each.subject, each.arm, each.score.step) != ("cat", "prior", 600)]
    rows.append(row("cat", "prior", 600, dino=0.8, pres=0.2, div=0.05, clip_i=0.7, context=0.95))
    text = page(rows)
    assert "(Table 3) | **holds on average, in part within the noise** |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| DIV at 600 steps")]
    assert line.endswith("| > 0 | yes, within the noise |")
    assert "| PRES, prior at 600 steps - base | +0.100 [+0.100, +0.100] | <= 0.25 | yes |" in text


def test_what_two_claims_share_is_shown_once():
    text = page(as_in_table_3())
    assert "Steps and curves are those above." in section(text, "Prior preservation keeps the class, at equal subject")
    assert text.count("| no prior | 600 | 0.900 |") == 1


def test_what_was_not_run_is_not_called_either():
    text = page(as_in_table_3())
    assert "| DreamBooth is closer to the subject than Textual Inversion (Table 1) | **was not run** |" in text


def test_an_interval_needs_two_subjects():
    rows = [*rows_of(PRIOR, 600, ["dog"], dino=0.8, context=1.0), *rows_of(INVERSION, 1500, ["dog"], dino=0.25)]
    assert "| +0.550 | >= 0.3 | yes |" in page(rows)
    assert "1 subjects (dog), 1 seed." in page(rows_of(NO_PRIOR, 75, ["dog"], dino=0.1))


def test_the_encoders_validity_and_the_settings_stand_at_the_end():
    text = page(as_in_table_3())
    assert "| area | 0.990 | 0.980 |" in section(text, "The encoders")
    assert "| sampler | 8 steps |" in section(text, "Settings")
