"""A base model of SDXL's topology, fully fine-tuned with both text encoders, from photos to a served picture."""

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline
from one_machine import OneMachine
from safetensors.torch import load_file
from tiny_job import RECIPE
from tiny_sdxl_base import write_tiny_sdxl_base

import booth

pytestmark = pytest.mark.ray

TEAPOT = Path(__file__).parents[2] / "examples" / "tinyworld" / "subjects" / "teapot"
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


@pytest.fixture(scope="module")
def base(stack: OneMachine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_sdxl_base(tmp_path_factory.mktemp("sdxl") / "tiny-sdxl")
    recipe = RECIPE.model_copy(update={"family": "stable-diffusion-xl", "source": "test"})
    (folder / "booth_recipe.json").write_text(recipe.model_dump_json())
    added = stack.register("tiny-sdxl", str(folder))
    assert added["family"] == "stable-diffusion-xl"
    return folder


def test_an_sdxl_job_goes_the_whole_way(stack: OneMachine, base: Path, tmp_path: Path) -> None:
    client = booth.Client(stack.base_url, stack.api_key)
    job = client.personalize(
        TEAPOT, "sks", "teapot", base_model="tiny-sdxl", steps=4, train_batch_size=1, num_class_images=4, seed=1,
        options=booth.TrainingOptions(sample_interval_steps=2, sample_prompts=["a photo of sks teapot"]),
    )  # fmt: skip
    model = job.wait(timeout_s=400)
    assert [strip.step for strip in job.samples()] == [0, 2, 4]
    pictures = model.generate("a photo of sks teapot", num_images=2, seed=3, num_inference_steps=2)
    assert [picture.image.size for picture in pictures] == [(32, 32)] * 2
    model.download(tmp_path / "model")
    StableDiffusionXLPipeline.from_pretrained(tmp_path / "model")
    for part, name in WEIGHTS.items():
        trained, before = load_file(tmp_path / "model" / part / name), load_file(base / part / name)
        moved = sum(not trained[key].float().equal(before[key].half().float()) for key in before)
        assert moved >= len(before) // 2, f"only {moved} of {len(before)} tensors of {part} moved"
