"""A batch of pictures: rows that do not feel each other, a pipeline that keeps nothing, previews, stopping."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image, ImageOps
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor

from booth.contract.drawing import SchedulerName
from booth_service.diffusion.batch import Row, Setting, Step, sample_batch
from booth_service.diffusion.components import load_pipeline
from booth_service.errors import CannotDraw

NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)
PLAIN = Setting(guidance_scale=4.0, num_inference_steps=3, width=32, height=32)
PHOTO = Image.radial_gradient("L").resize((48, 48)).convert("RGB")
ROWS = [
    Row("a photo of a dog in the snow", "ugly", 7, PHOTO),
    Row("a red teapot on the beach", "", 8, ImageOps.mirror(PHOTO.rotate(40))),
    Row("a cat", "blue", 9, PHOTO.rotate(90)),
]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    write: Callable[[Path], Path] = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}[request.param]
    return load_pipeline(write(tmp_path_factory.mktemp("base") / "tiny"), torch.float32)


def drawn(pipeline: Any, rows: list[Row], setting: Setting, places: int = 4) -> list[bytes]:
    drawings = sample_batch(pipeline, rows, setting, places=places)
    assert drawings is not None
    return [drawing.image.tobytes() for drawing in drawings]


def latents(pipeline: Any, rows: list[Row], setting: Setting) -> list[Tensor]:
    """What is decoded for each row: unlike pictures, it is not rounded to 8 bits."""
    seen: list[Tensor] = []
    layer = pipeline.vae.post_quant_conv
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    try:
        drawn(pipeline, rows, setting)
    finally:
        hook.remove()
    (decoded,) = seen
    return list(decoded[: len(rows)])


@pytest.mark.parametrize("strength", [None, 0.7], ids=["text", "img2img"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    pipeline: Any, name: SchedulerName, strength: float | None
) -> None:
    setting = replace(PLAIN, scheduler=name, strength=strength, has_negative=True)
    together = latents(pipeline, ROWS, setting)
    turned = latents(pipeline, ROWS[::-1], setting)[::-1]
    assert all(map(torch.equal, turned, together))
    assert torch.equal(latents(pipeline, [ROWS[1]], setting)[0], together[1])
    assert not torch.equal(together[0], together[2])


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_draws_in_one_step(pipeline: Any, name: SchedulerName) -> None:
    (image,) = drawn(pipeline, ROWS[:1], replace(PLAIN, scheduler=name, num_inference_steps=1), places=1)
    assert len(set(image)) > 10  # not one grey


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_a_negative_prompt_changes_nothing(pipeline: Any, scale: float) -> None:
    setting = replace(PLAIN, guidance_scale=scale)
    assert drawn(pipeline, ROWS, replace(setting, has_negative=True)) == drawn(pipeline, ROWS, setting)
    assert drawn(pipeline, ROWS, replace(PLAIN, has_negative=True)) != drawn(pipeline, ROWS, PLAIN)


def test_img2img_starts_from_the_rows_picture_and_goes_as_far_as_asked(pipeline: Any) -> None:
    one_row = [replace(ROWS[0], image=PHOTO)]
    far = replace(PLAIN, num_inference_steps=4, strength=1.0)
    near = replace(far, strength=0.25)
    other = [replace(ROWS[0], image=ImageOps.invert(PHOTO))]
    assert drawn(pipeline, one_row, near) != drawn(pipeline, other, near)
    assert drawn(pipeline, one_row, near) != drawn(pipeline, one_row, far)
    wide = replace(near, width=48, height=32)
    (drawing,) = sample_batch(pipeline, one_row, wide, places=1) or []
    assert drawing.image.size == (48, 32)


def test_less_than_one_step_of_img2img_is_refused(pipeline: Any) -> None:
    with pytest.raises(CannotDraw, match=r"strength 0\.2 of 3 steps"):
        drawn(pipeline, ROWS, replace(PLAIN, strength=0.2))


def test_a_prompt_is_cut_where_the_tokenizer_ends(pipeline: Any) -> None:
    fits = " ".join(["dog"] * (pipeline.tokenizer.model_max_length - 2))
    longer = [replace(ROWS[0], prompt=f"{fits} cat")]
    assert drawn(pipeline, longer, PLAIN) == drawn(pipeline, [replace(ROWS[0], prompt=fits)], PLAIN)


def test_previews_are_small_pictures_that_change_nothing(pipeline: Any) -> None:
    sizes, previews = [], []

    def on_step(step: Step) -> bool:
        pictures = step.preview()
        sizes.append((step.done, step.total, len(pictures), pictures[0].size))
        previews.append(pictures[0].tobytes())
        return True

    setting = replace(PLAIN, scheduler="euler_ancestral", width=96, height=64)
    watched = sample_batch(pipeline, ROWS, setting, places=4, on_step=on_step)
    assert [drawing.image.tobytes() for drawing in watched or []] == drawn(pipeline, ROWS, setting)
    assert sizes == [(done, 3, len(ROWS), (32, 22)) for done in (1, 2, 3)]  # 48 x 32 cells, three by three into one
    assert len(set(previews)) == 3


def test_nothing_is_decoded_or_denoised_after_a_stop(pipeline: Any) -> None:
    steps: list[int] = []

    def on_step(step: Step) -> bool:
        steps.append(step.done)
        return step.done < 2

    before = drawn(pipeline, ROWS, PLAIN)
    calls: list[int] = []
    hook = pipeline.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert sample_batch(pipeline, ROWS, PLAIN, places=4, on_step=on_step) is None
    finally:
        hook.remove()
    assert (steps, calls) == ([1, 2], [])
    assert drawn(pipeline, ROWS, PLAIN) == before


def test_a_batch_that_fails_leaves_the_pipeline_as_it_was(pipeline: Any) -> None:
    state = {key: value for key, value in vars(pipeline).items() if not isinstance(value, torch.nn.Module)}
    before = drawn(pipeline, ROWS, PLAIN)

    def on_step(step: Step) -> bool:
        raise RuntimeError("out of memory")

    setting = replace(PLAIN, scheduler="unipc", strength=0.9, guidance_scale=9.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        sample_batch(pipeline, ROWS, setting, places=4, on_step=on_step)
    after = {key: value for key, value in vars(pipeline).items() if not isinstance(value, torch.nn.Module)}
    assert after == state
    assert drawn(pipeline, ROWS, PLAIN) == before


def test_a_vae_that_was_cast_for_a_batch_has_its_dtype_back(tmp_path: Path) -> None:
    pipeline = load_pipeline(write_tiny_sdxl_base(tmp_path / "tiny"), torch.float16)
    setting = replace(PLAIN, num_inference_steps=2)
    before = drawn(pipeline, ROWS[:1], setting, places=1)

    def no_memory(*_: Any) -> None:
        raise RuntimeError(f"out of memory in {pipeline.vae.dtype}")

    for part, asked in ((pipeline.vae.decoder, setting), (pipeline.vae.encoder, replace(setting, strength=1.0))):
        hook = part.register_forward_hook(no_memory)
        with pytest.raises(RuntimeError, match=r"out of memory in torch\.float32"):
            drawn(pipeline, ROWS[:1], asked, places=1)
        hook.remove()
        assert pipeline.vae.dtype == torch.float16
    assert drawn(pipeline, ROWS[:1], setting, places=1) == before


def test_more_rows_than_places_are_refused(pipeline: Any) -> None:
    with pytest.raises(ValueError, match="3 rows that take 3 places do not fit a batch of 2"):
        sample_batch(pipeline, ROWS, PLAIN, places=2)
