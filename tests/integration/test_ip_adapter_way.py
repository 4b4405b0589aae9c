"""One photo and no training: a job of the method "ip_adapter" through the one-machine stack, from boothctl on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from one_machine import OneMachine
from PIL import Image, ImageOps
from safetensors.torch import load_file
from tiny_base import write_tiny_base
from tiny_ip_adapter import WEIGHTS, write_tiny_adapter
from tiny_job import RECIPE

import booth
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH, FOLDER
from booth.contract.states import JobState

pytestmark = pytest.mark.ray

PHOTO = Path(__file__).parents[2] / "examples" / "tinyworld" / "subjects" / "dog" / "00.png"
BASE = "tiny-photos"
SETTINGS = {"num_images": 2, "seed": 3, "num_inference_steps": 3}
PROMPT = "a dog on the beach"


@pytest.fixture(scope="module")
def folders(stack: OneMachine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and its adapter, both registered."""
    base = write_tiny_base(tmp_path_factory.mktemp("photos") / "tiny")
    (base / "booth_recipe.json").write_text(RECIPE.model_dump_json())
    adapter = write_tiny_adapter(base.with_name("adapter"), UNet2DConditionModel.from_pretrained(base / "unet"))
    added = stack.register(BASE, str(base), "--ip-adapter", str(adapter))
    assert f"{FOLDER}/{WEIGHTS}" in added["ip_adapter"]
    return base, adapter


@pytest.fixture(scope="module")
def client(stack: OneMachine) -> booth.Client:
    return booth.Client(stack.base_url, stack.api_key)


@pytest.fixture(scope="module")
def model(stack: OneMachine, client: booth.Client, folders: tuple[Path, Path]) -> booth.Model:
    """Of a job that boothctl submitted and followed to its end."""
    boothctl = Path(sys.executable).with_name("boothctl")
    command = [boothctl, "submit", PHOTO, "--method", "ip_adapter", "--class-noun", "dog", "--base-model", BASE]
    environment = os.environ | {"BOOTH_BASE_URL": stack.base_url, "BOOTH_API_KEY": stack.api_key}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (job,) = [job for job in client.jobs.list() if job.params.method == "ip_adapter"]
    assert job.warnings == []
    states = list(dict.fromkeys(event.status for event in job.events()))
    assert states == [JobState.QUEUED, JobState.PREPARING, JobState.PUBLISHING, JobState.SUCCEEDED]
    assert "published tenants/" in "".join(job.logs())
    return job.wait()


def by_diffusers(folders: tuple[Path, Path], photo: Image.Image) -> list[bytes]:
    """The pictures by diffusers' own pipeline, from base model, adapter and photo alone."""
    base, adapter = folders
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_ip_adapter(adapter, subfolder="", weight_name=WEIGHTS)
    pipeline.set_ip_adapter_scale(RECIPE.ip_adapter_scale)
    images = pipeline(
        [PROMPT] * 2,
        ip_adapter_image=photo,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        guidance_scale=RECIPE.guidance_scale,
        num_inference_steps=3,
        width=32,
        height=32,
    ).images
    return [image.tobytes() for image in images]


def test_its_pictures_are_diffusers_own_of_the_photo(model: booth.Model, folders: tuple[Path, Path]) -> None:
    assert model.prompt_prefix == "dog"
    pictures = model.generate(PROMPT, **SETTINGS)
    assert [picture.image.tobytes() for picture in pictures] == by_diffusers(folders, Image.open(PHOTO).convert("RGB"))
    start = ImageOps.invert(Image.open(PHOTO).convert("RGB"))
    (from_picture,) = model.generate(PROMPT, seed=3, num_inference_steps=3, image=start, strength=0.7)
    assert from_picture.image.tobytes() != pictures[0].image.tobytes()
    with pytest.raises(booth.ValidationError, match="IP-Adapter"):
        model.generate(PROMPT, edit=booth.PromptEdit(source_prompt="a cat on the beach"))


def test_its_folder_works_in_plain_diffusers(model: booth.Model, tmp_path: Path) -> None:
    folder = model.download(tmp_path / "my-dog")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.load_ip_adapter(folder, subfolder=FOLDER, weight_name=WEIGHTS)
    pipeline.set_ip_adapter_scale(0.6)
    embeds = load_file(folder / EMBEDS_PATH)[EMBEDS]
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    drawn = pipeline(
        PROMPT, ip_adapter_image_embeds=[embeds], generator=generator, guidance_scale=3.0, num_inference_steps=3,
        width=32, height=32,
    ).images[0]  # fmt: skip
    (ours,) = model.generate(PROMPT, seed=3, num_inference_steps=3)
    assert drawn.tobytes() == ours.image.tobytes()
    with pytest.raises(booth.FormatError, match="a LoRA would be empty"):
        model.download(tmp_path / "lora.safetensors", format="lora")


def test_a_base_model_without_an_adapter_says_how_to_get_one(client: booth.Client, model: booth.Model) -> None:
    with pytest.raises(booth.ValidationError, match=r"has no IP-Adapter.*--ip-adapter SOURCE2"):
        client.personalize(PHOTO, class_noun="dog", method="ip_adapter")
    model.delete()
    with pytest.raises(booth.NotFoundError):
        model.generate(PROMPT)
