"""An interrupted run ends as an unbroken one, on the same and on other numbers of ranks and stages."""

from pathlib import Path

import pytest
from loop import Case, Outcome, assert_published_as_cast, layout, run
from safetensors.torch import load_file
from tiny_base import write_tiny_base
from tiny_job import PARAMS

pytestmark = pytest.mark.ranks

BREAK, STEPS = 5, 9
WHOLE = PARAMS.model_copy(update={"steps": STEPS, "checkpoint_interval_steps": BREAK, "ema_decay": 0.9})
OTHER = WHOLE.model_copy(update={"learning_rate": 2e-3})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def outcomes(base: Path, folder: Path) -> dict[str, Outcome]:
    def case(name: str, ranks: int, stage: int, resume: str | None = None, params=WHOLE) -> Case:
        return Case(name, base, layout(ranks, stage), params, resume=resume, publishes=True)

    return run(
        [
            case("one", 1, 0),
            case("one again", 1, 0, "one"),
            case("two at 1", 2, 1),
            case("two at 3", 2, 3),
            case("two at 1 again", 2, 1, "two at 1"),
            case("two at 2 from one", 2, 2, "one"),
            case("two at 3 from 1", 2, 3, "two at 1"),
            case("two at 1 from 3", 2, 1, "two at 3"),
            case("one from two at 1", 1, 0, "two at 1"),
            case("one from two at 3", 1, 0, "two at 3"),
            case("other", 1, 0, "one", OTHER),
            case("four at 1 from two", 4, 1, "two at 1"),
            case("four at 3 from two", 4, 3, "two at 1"),
        ],
        folder,
    )


def test_the_published_files_are_casts_of_the_moving_average(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        if outcome.error is None:
            assert_published_as_cast(outcome)


@pytest.mark.parametrize(
    "name",
    [
        "two at 1 again",
        "one again",
        "two at 2 from one",
        "two at 3 from 1",
        "two at 1 from 3",
        "one from two at 1",
        "one from two at 3",
        "four at 1 from two",
        "four at 3 from two",
    ],
)
def test_a_resumed_run_ends_as_the_unbroken_one(outcomes: dict[str, Outcome], name: str) -> None:
    resumed, unbroken = outcomes[name], outcomes["two at 1"]
    assert (resumed.error, unbroken.error) == (None, None)
    assert sorted(resumed.progress) == list(range(BREAK + 1, STEPS + 1))
    for step, losses in resumed.losses().items():
        assert losses == pytest.approx(unbroken.losses()[step], rel=1e-5), f"step {step}"
    allowed = 0.01 * PARAMS.learning_rate * STEPS
    entries = sum(tensor.numel() for tensor in unbroken.weights.values())
    far = sum(int(((resumed.weights[k] - v).abs() > allowed).sum()) for k, v in unbroken.weights.items())
    assert far <= 0.001 * entries, f"{far} of {entries} weights differ by more than {allowed}"


@pytest.mark.parametrize(("name", "saved"), [("one again", "one"), ("two at 1 again", "two at 1")])
def test_what_is_restored_is_what_was_saved_to_the_last_bit(
    outcomes: dict[str, Outcome], folder: Path, name: str, saved: str
) -> None:
    """A checkpoint taken right after a resume holds the same bytes: masters, both moments, moving average."""
    before, after = (sorted((folder / at).iterdir()) for at in (f"{saved}/checkpoint-{BREAK}", f"{name}/restored"))
    assert [path.name for path in before] == [path.name for path in after]
    weights = [(old, new) for old, new in zip(before, after, strict=True) if old.suffix == ".safetensors"]
    assert weights
    for old, new in weights:
        assert old.read_bytes() == new.read_bytes(), old.name
    kinds = {name.split("/")[0] for old, _ in weights for name in load_file(old)}
    assert kinds == {"fp32", "exp_avg", "exp_avg_sq", "ema"}


def test_a_checkpoint_of_another_run_is_refused(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["other"].error is not None
    assert outcomes["other"].error.startswith("CheckpointMismatch: the checkpoint of step 5 is of a run with other")
    assert outcomes["other"].progress == {}
