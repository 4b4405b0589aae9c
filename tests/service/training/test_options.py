"""Every option of the loop, on real engines: what it changes, and what it must not."""

from pathlib import Path

import pytest
import torch
from loop import Case, Outcome, assert_published_as_cast, layout, run
from PIL import Image
from safetensors.torch import load_file
from tiny_base import write_tiny_base
from tiny_job import PARAMS

from booth.contract.jobs import Params, Subject

pytestmark = pytest.mark.ranks

STEPS = 6
BASE = PARAMS.model_copy(update={"steps": STEPS, "random_flip": False, "sample_prompts": ["a photo of sks teapot"]})
SECOND = Subject(token="zwx", class_noun="dog", instance_prompt="a photo of zwx dog", class_prompt="a photo of a dog")


def params(**changes) -> Params:
    return BASE.model_copy(update=changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    base = write_tiny_base(folder / "tiny")
    two = layout(2, 2)
    rates = {"learning_rate": 1e-12, "text_encoder_learning_rate": 1e-12, "weight_decay": 0.0}
    still = params(precision="bf16", **rates)
    return run(
        [
            Case("plain", base, layout(), params()),
            Case("sampled", base, layout(), params(sample_interval_steps=2)),
            Case("checkpointed activations", base, layout(activation_checkpointing=True), params()),
            Case("bf16", base, layout(), params(precision="bf16"), publishes=True),
            Case("still in bf16", base, layout(), still),
            Case("ema", base, layout(), params(ema_decay=0.5), publishes=True),
            Case("frozen", base, layout(), params(train_text_encoder=False), publishes=True),
            Case("stopped", base, layout(), params(text_encoder_stop_step=0)),
            Case("random", base, layout(), params(crop="random", random_flip=True), wide=True),
            Case("buckets", base, layout(), params(crop="bucket"), wide=True, masks=True),
            Case("masks", base, layout(), params(), masks=True),
            Case("subjects", base, layout(), params(more_subjects=[SECOND]), subjects=2),
            Case("snr", base, layout(), params(snr_gamma=1.0)),
            Case("poisoned", base, layout(), params(), poisoned_class_image=1),
            Case("cancelled", base, layout(), params(), stop_at=2),
            Case("enough", base, layout(), params(), enough_at=1),
            Case("two", base, two, params()),
            Case("two offloaded", base, layout(2, 2, offload_optimizer=True), params(), publishes=True),
            Case("two offloaded at 3", base, layout(2, 3, offload_optimizer=True), params(), publishes=True),
            Case("two sampled", base, two, params(sample_interval_steps=3)),
            Case("two sampled at 3", base, layout(2, 3), params(sample_interval_steps=3)),
            Case("two in bf16", base, two, params(precision="bf16"), publishes=True),
            Case("two still in bf16", base, two, still, publishes=True),
            Case("two still in bf16 at 3", base, layout(2, 3), still, publishes=True),
            Case("two in buckets", base, two, params(crop="bucket"), wide=True, masks=True),
            Case("two with ema", base, layout(2, 1), params(ema_decay=0.5), publishes=True),
            Case("two subjects", base, layout(2, 3), params(more_subjects=[SECOND]), subjects=2),
            Case("two poisoned", base, layout(2, 1), params(), poisoned_class_image=1),
            Case("two cancelled", base, layout(2, 1), params(), stop_at=2),
            Case("two enough", base, layout(2, 1), params(), enough_at=1),
        ],
        folder,
    )


PUBLISHED = ["bf16", "ema", "frozen", "two offloaded", "two offloaded at 3", "two in bf16", "two still in bf16",
             "two still in bf16 at 3", "two with ema"]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_casts_of_the_masters(outcomes: dict[str, Outcome], name: str) -> None:
    assert_published_as_cast(outcomes[name])


def same(ours: Outcome, theirs: Outcome, rel: float = 1e-5) -> None:
    assert (ours.error, theirs.error) == (None, None)
    assert sorted(ours.progress) == list(range(1, STEPS + 1))
    for step, losses in theirs.losses().items():
        assert ours.losses()[step] == pytest.approx(losses, rel=rel), f"step {step}"


@pytest.mark.parametrize(
    ("name", "reference", "steps"),
    [("sampled", "plain", [0, 2, 4, 6]), ("two sampled", "two", [0, 3, 6]), ("two sampled at 3", "two", [0, 3, 6])],
)
def test_samples_do_not_touch_the_run(
    outcomes: dict[str, Outcome], folder: Path, name: str, reference: str, steps: list[int]
) -> None:
    same(outcomes[name], outcomes[reference])
    assert outcomes[name].drawn == steps
    pictures = [Image.open(folder / name / f"sample-{step}-0.png") for step in steps]
    assert all(picture.size == (32, 32) for picture in pictures)
    assert pictures[0].tobytes() != pictures[-1].tobytes(), "training changed nothing that can be seen"


@pytest.mark.parametrize(("name", "reference"), [("enough", "plain"), ("two enough", "two")])
def test_a_run_that_has_enough_ends_early_on_all_ranks(outcomes: dict[str, Outcome], name: str, reference: str) -> None:
    """Said during the third step, heard during the fourth, which is the last."""
    ours, theirs = outcomes[name], outcomes[reference]
    assert ours.error is None
    assert ours.losses() == {step: pytest.approx(theirs.losses()[step], rel=1e-5) for step in (1, 2, 3, 4)}


def test_a_sample_of_equal_weights_is_the_same_picture(outcomes: dict[str, Outcome], folder: Path) -> None:
    first = [Image.open(folder / name / "sample-0-0.png").tobytes() for name in ("sampled", "two sampled")]
    assert first[0] == first[1]


def test_recomputed_activations_and_offload_give_the_same_run(outcomes: dict[str, Outcome]) -> None:
    same(outcomes["checkpointed activations"], outcomes["plain"])
    same(outcomes["two offloaded"], outcomes["two"])
    same(outcomes["two offloaded at 3"], outcomes["two"])


@pytest.mark.parametrize(("name", "reference"), [("bf16", "plain"), ("two in bf16", "two")])
def test_bf16_computes_nearly_the_same_and_keeps_fp32_masters(
    outcomes: dict[str, Outcome], name: str, reference: str
) -> None:
    same(outcomes[name], outcomes[reference], rel=0.03)
    # A bf16 master would move in steps of 1/256 of its size and so hold bf16 values only.
    masters = torch.cat([tensor.flatten() for tensor in outcomes[name].weights.values()])
    assert (masters.bfloat16().float() != masters).float().mean() > 0.9


def test_what_training_does_not_move_is_published_as_the_base_has_it(
    outcomes: dict[str, Outcome], folder: Path
) -> None:
    """Masters made of the bf16 copies would come out rounded."""
    base = load_file(folder / "tiny" / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("still in bf16", "two still in bf16", "two still in bf16 at 3"):
        assert outcomes[name].error is None
        for key, tensor in base.items():
            torch.testing.assert_close(outcomes[name].weights[f"unet.{key}"], tensor, rtol=0, atol=1e-7, msg=key)


def test_ema_lags_behind_the_weights_and_is_sharded_with_them(outcomes: dict[str, Outcome]) -> None:
    same(outcomes["ema"], outcomes["plain"])
    for name, tensor in outcomes["ema"].weights.items():
        torch.testing.assert_close(outcomes["two with ema"].weights[name], tensor, atol=2e-4, rtol=1e-3)
    moved = [
        name for name, tensor in outcomes["ema"].weights.items() if not tensor.equal(outcomes["plain"].weights[name])
    ]
    assert len(moved) > 0.9 * len(outcomes["ema"].weights)


def live_name_in(base: dict[str, torch.Tensor], name: str) -> str:
    """The base file's name of a live tensor: it may have a prefix more."""
    return next(stored for stored in base if stored.endswith(name.removeprefix("text_encoder.")))


def test_a_frozen_encoder_is_not_among_the_weights_and_a_stopped_one_keeps_its_own(
    outcomes: dict[str, Outcome], folder: Path
) -> None:
    assert not [name for name in outcomes["frozen"].weights if name.startswith("text_encoder.")]
    assert outcomes["frozen"].progress[STEPS]["text_encoder_learning_rate"] is None
    assert outcomes["stopped"].progress[STEPS]["text_encoder_learning_rate"] == 0
    base = load_file(folder / "tiny" / "text_encoder" / "model.safetensors")
    stopped = {name: tensor for name, tensor in outcomes["stopped"].weights.items() if name.startswith("text_encoder.")}
    assert stopped
    for name, tensor in stopped.items():
        assert tensor.equal(base[live_name_in(base, name)]), name


def test_crops_buckets_masks_and_subjects_train_alike_on_one_rank_and_two(outcomes: dict[str, Outcome]) -> None:
    for name in ("random", "buckets", "masks", "subjects", "snr"):
        assert outcomes[name].error is None
        assert sorted(outcomes[name].progress) == list(range(1, STEPS + 1))
        assert outcomes[name].losses() != outcomes["plain"].losses(), f"{name} changed nothing"
    same(outcomes["two in buckets"], outcomes["buckets"])
    same(outcomes["two subjects"], outcomes["subjects"])


@pytest.mark.parametrize("name", ["poisoned", "two poisoned"])
def test_a_loss_that_is_not_finite_names_step_and_image_on_all_ranks(
    outcomes: dict[str, Outcome], folder: Path, name: str
) -> None:
    error = outcomes[name].error
    assert error is not None
    assert error.startswith("NotFinite: the loss of step ")
    assert "(class image 1)" in error
    assert error.endswith("the weights were not updated")
    others = [path.read_text() for path in (folder / name).glob("error-*")]
    assert others == [error] * (name == "two poisoned")
    step = int(error.split("step ")[1].split()[0])
    clean = {at: losses for at, losses in outcomes["plain"].losses().items() if at < step}
    for at, losses in clean.items():
        assert outcomes[name].losses()[at] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("name", ["cancelled", "two cancelled"])
def test_the_owner_stops_all_ranks(outcomes: dict[str, Outcome], folder: Path, name: str) -> None:
    assert outcomes[name].error == "AttemptEnded: the owner asked the job to stop"
    assert [path.read_text() for path in (folder / name).glob("error-*")] == [outcomes[name].error] * (
        name == "two cancelled"
    )
    assert max(outcomes[name].progress) < STEPS
