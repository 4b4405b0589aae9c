"""Schedulers by name, with the base model's own betas and prediction type."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from tiny_base import write_tiny_base

from booth.contract.drawing import SchedulerName
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.sampling import draw
from booth_service.diffusion.schedulers import scheduler_of

NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)
KINDS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
}
OWN = {
    "ddim": DDIMScheduler(beta_start=0.001, beta_schedule="scaled_linear", prediction_type="v_prediction"),
    "pndm": PNDMScheduler(beta_start=0.001, beta_schedule="scaled_linear", prediction_type="v_prediction"),
    "euler": EulerDiscreteScheduler(beta_start=0.001, beta_schedule="scaled_linear", prediction_type="v_prediction"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_a_name_is_a_scheduler_with_the_bases_own_betas(own: Any, name: SchedulerName) -> None:
    scheduler = scheduler_of(own, name)
    assert type(scheduler).__name__ == KINDS.get(name, type(own).__name__)
    assert torch.equal(scheduler.betas, own.betas)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler is not own


def test_dpmsolver_is_the_second_order_one_whatever_the_base_says() -> None:
    own = scheduler_of(OWN["ddim"], "dpmsolver++")
    own.register_to_config(solver_order=3, algorithm_type="sde-dpmsolver++")
    config = scheduler_of(own, "dpmsolver++").config
    assert (config.algorithm_type, config.solver_order) == ("dpmsolver++", 2)


def test_ddim_does_not_clip_latents_where_the_base_does_not_ask_for_it() -> None:
    assert not scheduler_of(OWN["euler"], "ddim").config.clip_sample
    assert scheduler_of(OWN["ddim"], "ddim").config.clip_sample  # its own words


def test_an_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'heun' is not one of base, ddim"):
        scheduler_of(OWN["ddim"], "heun")  # type: ignore[arg-type]


def test_every_scheduler_draws_pictures_of_its_own_and_each_the_same_again(tmp_path: Path) -> None:
    pipeline = load_pipeline(write_tiny_base(tmp_path / "tiny", "v_prediction"), torch.float32)

    def drawn(name: SchedulerName) -> bytes:
        (image,) = draw(
            pipeline,
            ["a photo"],
            [""],
            [1],
            guidance_scale=3.0,
            num_inference_steps=3,
            resolution=32,
            batch_size=1,
            scheduler=name,
        )
        return image.tobytes()

    once = {name: drawn(name) for name in NAMES}
    again = {name: drawn(name) for name in reversed(NAMES)}
    assert once == again
    assert len(set(once.values())) == len(NAMES) - 1
    assert once["base"] == once["ddim"]
