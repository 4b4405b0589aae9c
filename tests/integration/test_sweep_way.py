"""A sweep on all the real parts, and the textual inversion in it: one embedding learned, served beside the base's UNet,
taken by diffusers."""

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


@pytest.fixture(scope="module")
def client(stack: OneMachine) -> booth.Client:
    return booth.Client(stack.base_url, stack.api_key)


@pytest.fixture(scope="module")
def group(client: booth.Client) -> booth.Group:
    """One step of DreamBooth beside a textual inversion, each trained, published and scored in one Ray job."""
    group = client.sweep(
        booth.Subject(TINYWORLD / "subjects" / "teapot", "zwx", "teapot"),
        {
            "dreambooth": {"steps": 1, "prior_loss_weight": 0},
            "inversion": {"method": "textual_inversion", "steps": STEPS, "learning_rate": 0.05},
        },
        dials={"train_batch_size": 1, "base_model": "tinyworld"},
        scoring=booth.ScoringOptions(num_images=1, num_class_images=1, num_inference_steps=1),
    )
    group.wait(timeout_s=400)
    return group.refresh()


def test_a_sweep_trains_scores_and_reports_in_one_ray_job(client: booth.Client, group: booth.Group) -> None:
    assert group.states == {"succeeded": 2}, [cell.error for cell in group.cells()]
    found = [(cell.labels.arm, cell.scores()[-1].step) for cell in group.cells()]
    assert found == [("dreambooth", 1), ("inversion", STEPS)]
    assert {cell.model_id for cell in group.cells()} <= {model.id for model in client.models.list()}
    titles = [table.title for table in group.report().data.tables]
    assert titles == [
        "The paper's Table 1: subject and prompt fidelity",
        "The paper's Table 3: prior preservation",
        "Means over 1 subject",
        "Differences to dreambooth",
        "By subject",
    ]


def test_a_textual_inversion_goes_the_whole_way(client: booth.Client, group: booth.Group, tmp_path: Path) -> None:
    (cell,) = [cell for cell in group.cells() if cell.labels.arm == "inversion"]
    job, model = client.jobs.get(cell.job_id), client.models.get(cell.model_id)
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
