"""A base model of half of SD 1.5's widths goes the whole way as a job: 2 ranks at ZeRO stage 2, 128 px."""

import os
from pathlib import Path

from diffusers import StableDiffusionPipeline
from miniature import ROOT, write_miniature
from one_machine import OneMachine
from safetensors.torch import load_file

import booth
from booth.contract.models import Recipe

STEPS, CLASS_IMAGES = 3, 4
LIMITS = {"BOOTH_MIN_ZERO_STAGE": "2", "BOOTH_FIRST_STEP_LIMIT_S": "1200", "BOOTH_NO_PROGRESS_LIMIT_S": "1200"}
RECIPE = Recipe(
    source="a test of sizes: random weights learn nothing",
    steps=STEPS,
    learning_rate=5e-6,
    text_encoder_learning_rate=5e-6,
    num_class_images=CLASS_IMAGES,
    resolution=128,
    train_batch_size=1,
    guidance_scale=2.0,
    num_inference_steps=2,
    class_guidance_scale=2.0,
    class_num_inference_steps=2,
    class_block_size=2,
    rare_tokens=["sks"],
)


def row(folder: Path) -> str:
    """What was seen, from photos to a served picture. Raises where anything does not hold."""
    os.environ |= LIMITS
    base = write_miniature(folder / "base", divisor=2)
    (base / "booth_recipe.json").write_text(RECIPE.model_dump_json())
    machine = OneMachine(folder / "data")
    machine.start()
    try:
        machine.register("half-width", str(base))
        return _job(booth.Client(machine.base_url, machine.api_key), base, folder)
    finally:
        machine.stop()


def _job(client: booth.Client, base: Path, folder: Path) -> str:
    photos = ROOT / "examples" / "tinyworld" / "subjects" / "teapot"
    job = client.personalize(photos, "sks", "teapot", base_model="half-width", seed=1)
    model = job.wait(timeout_s=3000)
    events = [event.message for event in job.events()]
    layout = next(message for message in events if "ZeRO stage 2" in message and "2 ranks" in message)
    assert client.models.get(model.id).generate("a photo of sks teapot", num_images=1)[0].image.size == (128, 128)
    published = model.download(folder / "model")
    StableDiffusionPipeline.from_pretrained(published)
    moved, total, count = 0, 0, 0
    for path in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        tuned, before = load_file(published / path), load_file(base / path)
        moved += sum(not tuned[key].equal(before[key].to(tuned[key].dtype)) for key in before)
        total += len(before)
        count += sum(tensor.numel() for tensor in tuned.values())
    # Three such steps move a norm's scale by less than half precision holds near 1.
    assert moved > 0.8 * total, f"only {moved} of {total} tensors moved"
    return f"{count / 1e6:.0f} M parameters; {layout}; {moved} of {total} tensors moved"
