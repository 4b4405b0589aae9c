"""Schedulers of class images: by name, with the base model's own betas and prediction type."""

from pathlib import Path

import pytest
import torch
from tiny_base import write_tiny_base

from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.sampling import draw, use_scheduler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny", "v_prediction")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("base", "DDIMScheduler"), ("ddim", "DDIMScheduler"), ("dpmsolver++", "DPMSolverMultistepScheduler")],
)
def test_a_name_is_a_scheduler_of_this_base(folder: Path, name: str, kind: str) -> None:
    pipeline = load_pipeline(folder, torch.float32)
    before = pipeline.scheduler.config
    use_scheduler(pipeline, name)  # type: ignore[arg-type]
    after = pipeline.scheduler.config
    assert type(pipeline.scheduler).__name__ == kind
    assert {key: after[key] for key in ("prediction_type", "beta_start", "beta_end", "beta_schedule")} == {
        key: before[key] for key in ("prediction_type", "beta_start", "beta_end", "beta_schedule")
    }
    if name == "dpmsolver++":
        assert after.algorithm_type == "dpmsolver++"


def test_another_scheduler_draws_other_pictures_and_each_the_same_again(folder: Path) -> None:
    def drawn(name: str) -> bytes:
        pipeline = load_pipeline(folder, torch.float32)
        use_scheduler(pipeline, name)  # type: ignore[arg-type]
        (image,) = draw(
            pipeline, ["a photo"], [""], [1], guidance_scale=3.0, num_inference_steps=3, resolution=32, batch_size=1
        )
        return image.tobytes()

    assert drawn("ddim") == drawn("ddim") == drawn("base")
    assert drawn("dpmsolver++") != drawn("ddim")
