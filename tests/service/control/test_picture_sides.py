"""Sides of training pictures, by the configurations of base models and not by a constant."""

import json
from pathlib import Path

import pytest
from control_plane import put_file

from booth_service.control.picture_sides import resolution_problems, side_multiple_px
from booth_service.errors import BaseModelError

TINYWORLD = Path(__file__).parents[3] / "examples" / "tinyworld" / "base_model"
REAL = {"vae": {"block_out_channels": [128, 256, 512, 512]}}


def base(store, configs: dict[str, dict]):
    return [put_file(store, f"{part}/config.json", json.dumps(config).encode()) for part, config in configs.items()]


@pytest.mark.parametrize(
    ("down_blocks", "multiple"),
    [
        (["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], 64),  # Stable Diffusion 1.x and 2.x
        (["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], 32),  # SDXL
    ],
)
def test_each_down_block_but_the_last_halves(object_store, down_blocks, multiple):
    files = base(object_store, {**REAL, "unet": {"down_block_types": down_blocks}})
    assert side_multiple_px(object_store, files) == multiple


def test_tinyworld_takes_multiples_of_16(object_store):
    configs = {part: json.loads((TINYWORLD / part / "config.json").read_text()) for part in ("vae", "unet")}
    assert side_multiple_px(object_store, base(object_store, configs)) == 16


@pytest.mark.parametrize("configs", [REAL, {**REAL, "unet": {}}])
def test_a_base_model_that_does_not_say_is_refused(object_store, configs):
    with pytest.raises(BaseModelError, match=r"unet/config\.json|down_block_types"):
        side_multiple_px(object_store, base(object_store, configs))


@pytest.mark.parametrize(("resolution", "remedy"), [(520, "Give 512 or 576."), (32, "Give 64.")])
def test_the_nearest_sides_are_named(resolution, remedy):
    [problem] = resolution_problems(resolution, 64)
    assert problem.remedy == remedy
    assert resolution_problems(512, 64) == []
