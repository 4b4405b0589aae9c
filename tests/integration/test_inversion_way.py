"""Textual Inversion on all the real parts: one embedding learned, served beside the base's UNet, taken by diffusers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from one_machine import OneMachine
from safetensors.torch import load_file

import booth
from booth.contract.states import JobState

pytestmark = pytest.mark.ray

TINYWORLD = Path(__file__).parents[2] / "examples" / "tinyworld"
STEPS = 8
UNET, ENCODER = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


def test_a_textual_inversion_goes_the_whole_way(stack: OneMachine, tmp_path: Path) -> None:
    client = booth.Client(stack.base_url, stack.api_key)
    job = client.personalize(
        TINYWORLD / "subjects" / "teapot", "zwx", "teapot", method="textual_inversion", steps=STEPS,
        learning_rate=0.05, seed=1, options=booth.TrainingOptions(checkpoint_interval_steps=4),
    )  # fmt: skip
    model = job.wait(timeout_s=400)
    assert (model.prompt_prefix, job.params.method) == ("zwx", "textual_inversion")
    states = {event.status for event in job.events()}
    assert {JobState.TRAINING, JobState.PUBLISHING, JobState.SUCCEEDED} <= states

    prompt = "a photo of zwx on the beach"
    [served] = model.generate(prompt, seed=3, num_inference_steps=6)
    [untouched] = client.generate(prompt, base_model=model.base_model, seed=3, num_inference_steps=6)
    file = model.download(tmp_path / "zwx.safetensors", format="embedding")
    pipeline = StableDiffusionPipeline.from_pretrained(TINYWORLD / "base_model", dtype=torch.float32)
    pipeline.load_textual_inversion(file)
    loaded = pipeline(
        "a photo of <zwx> on the beach", generator=torch.Generator().manual_seed(3), num_inference_steps=6,
        guidance_scale=3.0,
    ).images[0]  # fmt: skip
    pictures = [np.asarray(each).astype(int) for each in (served.image, untouched.image, loaded)]
    assert np.abs(pictures[0] - pictures[2]).max() <= 4, "but for the rounding of the row in the published file"
    assert np.abs(pictures[0] - pictures[1]).max() > 10

    folder = model.download(tmp_path / "model")
    assert (folder / UNET).read_bytes() == (TINYWORLD / "base_model" / UNET).read_bytes()
    ours, theirs = load_file(folder / ENCODER), load_file(TINYWORLD / "base_model" / ENCODER)
    changed = {
        name: (ours[name] != theirs[name]).nonzero() for name in theirs if not torch.equal(ours[name], theirs[name])
    }
    [(name, places)] = changed.items()
    assert name.endswith("token_embedding.weight")
    assert len(set(places[:, 0].tolist())) == 1
