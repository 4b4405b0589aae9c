"""The result does not depend on the cluster: ranks, accumulation and ZeRO stage change rounding and nothing else."""

import pytest
from loop import Case, Outcome, assert_published_as_cast, layout, run
from tiny_base import write_tiny_base
from tiny_job import PARAMS

pytestmark = pytest.mark.ranks

STEPS = 20
PARAMS_20 = PARAMS.model_copy(update={"steps": STEPS, "checkpoint_interval_steps": STEPS})
ONE_ROW_EACH = PARAMS_20.model_copy(update={"train_batch_size": 1})
RELATIVE_LOSS = 1e-5  # fp32 sums in another order; 20 steps carry it on


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("world-size")
    base = write_tiny_base(folder / "tiny")

    def case(name: str, ranks: int, stage: int, micro: int, params=PARAMS_20) -> Case:
        rows = 2 * params.train_batch_size
        return Case(name, base, layout(ranks, stage, rows=rows, micro=micro), params, publishes=True)

    return run(
        [
            case("accumulated", 1, 0, 2),
            case("whole", 1, 0, 4),
            case("pair", 1, 0, 2, ONE_ROW_EACH),
            *(case(f"stage-{stage}", 2, stage, 2) for stage in range(4)),
            case("stage-2-accumulated", 2, 2, 1),
            case("pair-on-two", 2, 1, 1, ONE_ROW_EACH),
        ],
        folder,
    )


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("whole", "accumulated"),
        ("stage-0", "accumulated"),
        ("stage-1", "accumulated"),
        ("stage-2", "accumulated"),
        ("stage-3", "accumulated"),
        ("stage-2-accumulated", "accumulated"),
        ("pair-on-two", "pair"),
    ],
)
def test_losses_and_weights_are_those_of_one_rank(outcomes: dict[str, Outcome], name: str, reference: str) -> None:
    ours, theirs = outcomes[name], outcomes[reference]
    assert (ours.error, theirs.error) == (None, None)
    assert sorted(ours.progress) == list(range(1, STEPS + 1))
    for step, losses in theirs.losses().items():
        assert ours.losses()[step] == pytest.approx(losses, rel=RELATIVE_LOSS), f"step {step}"
    # Adam divides by the gradient's size and so magnifies rounding where that is near zero: not every entry is equal.
    allowed = 0.01 * PARAMS.learning_rate * STEPS
    entries = sum(tensor.numel() for tensor in theirs.weights.values())
    far = sum(int(((ours.weights[name] - tensor).abs() > allowed).sum()) for name, tensor in theirs.weights.items())
    assert far <= 0.001 * entries, f"{far} of {entries} weights differ by more than {allowed}"


def test_the_published_files_are_casts_of_the_weights(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        assert_published_as_cast(outcome)


def test_clipping_clips_the_whole_gradient(outcomes: dict[str, Outcome]) -> None:
    """The norm in the progress is the one before clipping, and it is above the limit here, at every stage alike."""
    for name in ("accumulated", "stage-1", "stage-2", "stage-3"):
        norms = [said["grad_norm"] for said in outcomes[name].progress.values()]
        assert max(norms) > PARAMS.max_grad_norm
        assert norms == pytest.approx([s["grad_norm"] for s in outcomes["accumulated"].progress.values()], rel=1e-3)


def test_progress_says_how_the_run_goes(outcomes: dict[str, Outcome]) -> None:
    last = outcomes["stage-2"].progress[STEPS]
    assert last["learning_rate"] == PARAMS.learning_rate
    assert last["text_encoder_learning_rate"] == PARAMS.text_encoder_learning_rate
    assert outcomes["stage-2"].progress[1]["learning_rate"] == PARAMS.learning_rate / 2  # two steps of warm-up
    assert last["images_per_second"] > 0
    assert last["eta_s"] == 0
    assert 0 < last["mfu"] < 1
    assert last["peak_memory_bytes"] > 50 * 2**20
