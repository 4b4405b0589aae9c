"""The benchmarks themselves: arms train alike, and what is not alike is not timed."""

from pathlib import Path

import duels
import pytest
from duels import BARE_TORCH, BOOTH, REFERENCE, WrongAnswer, compare, fight, pairs
from figure import at_least, at_most, line
from miniature import make_parts
from run import named
from turns import Spent
from workload import tinyworld

pytestmark = pytest.mark.ranks


def test_booth_the_reference_and_the_bare_loop_train_alike(tmp_path: Path) -> None:
    workload = tinyworld(tmp_path / "workload", 2 * duels.STEPS_PER_TURN)
    arms = {"booth": BOOTH, "reference": REFERENCE, "bare": BARE_TORCH}
    spent, losses = fight(workload, arms, tmp_path, 2)
    compare(losses["reference"], losses["booth"], 4)
    compare(losses["bare"], losses["booth"], 4)
    assert len({round(loss, 3) for loss in losses["booth"]}) == 4
    assert all(len(turns) == 2 and min(turn.cpu_s for turn in turns) > 0 for turns in spent.values())


@pytest.mark.parametrize("other", [[1.0, 2.001], [1.0], [1.0, float("nan")]])
def test_a_wrong_answer_has_no_time(other: list[float]) -> None:
    with pytest.raises(WrongAnswer):
        compare([1.0, 2.0], other, 2)


def test_an_arm_that_fails_says_why(tmp_path: Path) -> None:
    broken = duels.Workload(tmp_path, tmp_path / "no-base")
    with pytest.raises(duels.TurnsBroken, match="No such file"):
        fight(broken, {"booth": BOOTH}, tmp_path, 1)


def test_pairs_are_ratios_of_neighbouring_turns() -> None:
    found = pairs([Spent(2.0, 3.0), Spent(4.0, 1.0)], [Spent(1.0, 1.0), Spent(2.0, 2.0)])
    assert (found.cpu, found.wall) == ([2.0, 2.0], [3.0, 0.5])


def test_a_line_says_whether_the_goal_is_reached() -> None:
    values = [1.2, 1.3, 1.4]
    assert line("C1", values, at_least(1.3), "x") == "C1 1.30 (1.20-1.40) goal >=1.30 ok  x"
    assert line("C2", values, at_most(1.29), "x") == "C2 1.30 (1.20-1.40) goal <=1.29 SHORT  x"
    assert line("S1", [2.0], None, "x") == "S1 2.00 (2.00-2.00) no goal  x"


def test_a_family_of_figures_is_named_by_its_letter_and_number() -> None:
    assert named("C3") == ["C3-1", "C3-2", "C3-3"]
    assert named("C1") == ["C1"]
    assert named("X9") == []


def test_the_miniature_has_the_tensors_of_the_real_model() -> None:
    parts = make_parts()
    assert len(list(parts["unet"].parameters())) == 686
    assert 13e6 < sum(p.numel() for p in parts["unet"].parameters()) < 14e6
    assert len(list(parts["text_encoder"].parameters())) == 196
