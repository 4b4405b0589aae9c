"""Pictures with a photo beside the prompt: diffusers' own, and nothing of it left on the UNet afterwards."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from tiny_base import write_tiny_base
from tiny_ip_adapter import WEIGHTS, Kind, write_tiny_adapter
from tiny_sdxl_base import write_tiny_sdxl_base

from booth.contract.drawing import PromptEdit
from booth.contract.ip_adapter import FOLDER
from booth_service.diffusion.batch import Row, Setting, sample_batch
from booth_service.diffusion.batch_pipeline import IMG2IMG
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.image_prompt import ImagePrompt, embeds_of_photo, load_adapter
from booth_service.errors import BaseModelError, CannotDraw

PLAIN = Setting(guidance_scale=4.0, num_inference_steps=3, width=32, height=32)
GRADIENT = Image.radial_gradient("L").resize((48, 40)).convert("RGB")
PHOTO = ImageOps.colorize(GRADIENT.convert("L"), "navy", "orange")
OTHER = ImageOps.invert(PHOTO).rotate(90)
ROWS = [Row("a dog on the beach", "ugly", 7, GRADIENT), Row("a teapot", "", 8, GRADIENT.rotate(40))]
SCALE = 0.6


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write: Callable[[Path], Path] = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}[request.param]
    return write(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def pipeline(base: Path) -> Any:
    return load_pipeline(base, torch.float32)


@pytest.fixture
def folder(request: pytest.FixtureRequest, pipeline: Any, tmp_path: Path) -> Path:
    kind: Kind = getattr(request, "param", "plain")
    write_tiny_adapter(tmp_path / FOLDER, pipeline.unet, kind)
    return tmp_path


def prompt_of(pipeline: Any, folder: Path, photo: Image.Image = PHOTO, scale: float = SCALE) -> ImagePrompt:
    return ImagePrompt(load_adapter(pipeline, folder), embeds_of_photo(pipeline, folder, photo), scale)


def drawn(pipeline: Any, setting: Setting, prompt: ImagePrompt | None, rows: list[Row] = ROWS) -> list[bytes]:
    drawings = sample_batch(pipeline, rows, setting, places=len(rows), image_prompt=prompt)
    assert drawings is not None
    return [drawing.image.tobytes() for drawing in drawings]


def drawn_by_diffusers(base: Path, folder: Path, setting: Setting, photo: Image.Image) -> list[bytes]:
    """The same rows in one batch by the pipeline's own way with the photo itself."""
    own = load_pipeline(base, torch.float32)
    if setting.strength is not None:
        own = IMG2IMG[type(own)].from_pipe(own, torch_dtype=torch.float32)
    own.set_progress_bar_config(disable=True)
    own.load_ip_adapter(folder, subfolder=FOLDER, weight_name=WEIGHTS, local_files_only=True)
    own.set_ip_adapter_scale(SCALE)
    size = {"width": setting.width, "height": setting.height}
    start = {"image": [row.image.resize((32, 32), Image.Resampling.LANCZOS) for row in ROWS if row.image]}
    return [
        image.tobytes()
        for image in own(
            prompt=[row.prompt for row in ROWS],
            negative_prompt=[row.negative_prompt for row in ROWS] if setting.has_negative else None,
            generator=[torch.Generator().manual_seed(row.seed) for row in ROWS],
            guidance_scale=setting.guidance_scale,
            num_inference_steps=setting.num_inference_steps,
            ip_adapter_image=photo,
            **(size if setting.strength is None else {**start, "strength": setting.strength}),
        ).images
    ]


@pytest.mark.parametrize(
    ("folder", "setting"),
    [
        ("plain", PLAIN),
        ("plain", replace(PLAIN, has_negative=True)),
        ("plain", replace(PLAIN, guidance_scale=1.0)),
        ("plain", replace(PLAIN, strength=0.7)),
        ("plus", PLAIN),
    ],
    ids=["guided", "negative", "unguided", "img2img", "plus"],
    indirect=["folder"],
)
def test_pictures_are_those_of_diffusers_with_the_photo(
    base: Path, pipeline: Any, folder: Path, setting: Setting
) -> None:
    square = [replace(row, image=row.image.resize((32, 32), Image.Resampling.LANCZOS)) for row in ROWS if row.image]
    ours = drawn(pipeline, setting, prompt_of(pipeline, folder), square)
    assert ours == drawn_by_diffusers(base, folder, setting, PHOTO)
    assert ours != drawn(pipeline, setting, None, square)


@pytest.mark.parametrize("folder", ["plus"], indirect=True)  # whose projection has attention of its own
def test_nothing_of_a_photo_stays_behind(pipeline: Any, folder: Path) -> None:
    before, parts, own = drawn(pipeline, PLAIN, None), dict(pipeline.components), pipeline.unet.attn_processors
    names = set(pipeline.unet.state_dict())
    first, second = prompt_of(pipeline, folder), prompt_of(pipeline, folder, OTHER)
    assert drawn(pipeline, PLAIN, None) == before
    one, other = drawn(pipeline, PLAIN, first), drawn(pipeline, PLAIN, second)
    assert len({*one, *other, *before}) == 3 * len(ROWS)
    assert drawn(pipeline, PLAIN, None) == before
    assert drawn(pipeline, PLAIN, first) == one
    with pytest.raises(RuntimeError, match="out of the middle"):
        sample_batch(pipeline, ROWS, PLAIN, places=2, image_prompt=first, on_step=fail)
    assert drawn(pipeline, PLAIN, None) == before
    assert pipeline.components == parts
    assert set(pipeline.unet.state_dict()) == names
    assert {name: id(each) for name, each in pipeline.unet.attn_processors.items()} == {
        name: id(each) for name, each in own.items()
    }
    assert pipeline.unet.config.encoder_hid_dim_type is None


def fail(_: object) -> bool:
    raise RuntimeError("out of the middle of a batch")


def test_the_scale_says_how_much_the_photo_counts(pipeline: Any, folder: Path) -> None:
    prompt = prompt_of(pipeline, folder)
    nothing, half = (drawn(pipeline, PLAIN, replace(prompt, scale=scale)) for scale in (0.0, 0.3))
    assert nothing == drawn(pipeline, PLAIN, None)
    assert len({nothing[0], half[0], drawn(pipeline, PLAIN, prompt)[0]}) == 3


def test_an_edit_is_refused_with_the_reason(pipeline: Any, folder: Path) -> None:
    edited = replace(ROWS[0], edit=PromptEdit(source_prompt="a cat on the beach"))
    with pytest.raises(CannotDraw, match=r"IP-Adapter\) reads a photo.*draw without `edit`"):
        sample_batch(pipeline, [edited], PLAIN, places=2, image_prompt=prompt_of(pipeline, folder))


def test_an_adapter_of_another_base_is_an_error_and_leaves_the_unet_alone(pipeline: Any, folder: Path) -> None:
    before = drawn(pipeline, PLAIN, None)
    shutil.rmtree(folder / FOLDER / "image_encoder")
    with pytest.raises(BaseModelError, match=r"the IP-Adapter of .* cannot be loaded"):
        embeds_of_photo(pipeline, folder, PHOTO)
    (folder / FOLDER / "second.safetensors").write_bytes(b"")
    with pytest.raises(BaseModelError, match="has 2 adapter weight files, and needs one"):
        load_adapter(pipeline, folder)
    assert drawn(pipeline, PLAIN, None) == before
