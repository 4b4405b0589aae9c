"""Stable Diffusion XL in the training loop: both text encoders, on one rank and under ZeRO, and v-prediction's 2.x."""

from pathlib import Path

import pytest
import torch
from loop import Case, Outcome, layout, run
from tiny_base import write_tiny_base
from tiny_job import PARAMS
from tiny_sdxl_base import write_tiny_sdxl_base

from booth_service.diffusion.components import load_components
from booth_service.diffusion.denoiser import denoiser

pytestmark = pytest.mark.ranks

STEPS = 5
TRAINED = PARAMS.model_copy(update={"steps": STEPS, "checkpoint_interval_steps": STEPS})
FROZEN = TRAINED.model_copy(update={"train_text_encoder": False})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sdxl")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    sdxl = write_tiny_sdxl_base(folder / "sdxl")
    sd2 = write_tiny_base(folder / "sd2", "v_prediction", version=2)
    return run(
        [
            Case("alone", sdxl, layout(1, 0), TRAINED),
            Case("recomputed", sdxl, layout(1, 0, activation_checkpointing=True), TRAINED),
            Case("frozen", sdxl, layout(1, 0), FROZEN),
            Case("sd2", sd2, layout(1, 0), TRAINED),
            Case("stage-1-bf16", sdxl, layout(2, 1), TRAINED.model_copy(update={"precision": "bf16"})),
            Case("stage-3", sdxl, layout(2, 3, activation_checkpointing=True), TRAINED),
            Case("frozen-stage-3", sdxl, layout(2, 3), FROZEN),
            Case("sd2-stage-2", sd2, layout(2, 2), TRAINED),
        ],
        folder,
    )


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("recomputed", "alone"),
        ("stage-3", "alone"),
        ("frozen-stage-3", "frozen"),
        ("sd2-stage-2", "sd2"),
    ],
)
def test_the_losses_are_those_of_one_rank(outcomes: dict[str, Outcome], name: str, reference: str) -> None:
    ours, theirs = outcomes[name], outcomes[reference]
    assert (ours.error, theirs.error) == (None, None)
    assert sorted(theirs.progress) == list(range(1, STEPS + 1))
    for step, losses in theirs.losses().items():
        assert ours.losses()[step] == pytest.approx(losses, rel=1e-5), f"step {step}"


@pytest.mark.parametrize("name", ["alone", "stage-3", "frozen"])
def test_every_trained_tensor_moved_and_no_other_is_kept(outcomes: dict[str, Outcome], folder: Path, name: str) -> None:
    base = denoiser(load_components(folder / "sdxl"), train_text_encoder=name != "frozen")
    trained = {key: parameter for key, parameter in base.named_parameters() if parameter.requires_grad}
    weights = outcomes[name].weights
    assert weights.keys() == trained.keys()
    assert {key.split(".")[0] for key in weights} == set(base.trained())
    still = [key for key, tensor in weights.items() if torch.equal(tensor, trained[key])]
    assert not still


def test_half_precision_has_about_the_same_losses(outcomes: dict[str, Outcome]) -> None:
    half, exact = outcomes["stage-1-bf16"], outcomes["alone"]
    assert half.error is None
    for step, (loss, instance, prior) in exact.losses().items():
        assert half.losses()[step] == pytest.approx((loss, instance, prior), rel=0.02), f"step {step}"
    assert half.losses()[1] != exact.losses()[1]


def test_trained_and_frozen_encoders_begin_alike_and_part(outcomes: dict[str, Outcome]) -> None:
    """Cached embeddings and live encoders are the same conditions, until the encoders move."""
    alone, frozen = outcomes["alone"].losses(), outcomes["frozen"].losses()
    assert frozen[1] == pytest.approx(alone[1], rel=1e-6)
    assert frozen[STEPS] != pytest.approx(alone[STEPS], rel=1e-6)
