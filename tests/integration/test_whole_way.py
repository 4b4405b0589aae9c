"""Photos in at one end, personalised pictures out at the other, on all the real parts."""

import hashlib
import json
from pathlib import Path

import httpx2
import pytest
from diffusers import StableDiffusionPipeline
from one_machine import OneMachine
from safetensors.torch import load_file
from tiny_suite import write_tiny_suite

import booth
from booth.contract.states import JobState

pytestmark = pytest.mark.ray

TINYWORLD = Path(__file__).parents[2] / "examples" / "tinyworld"
TEAPOT = sorted((TINYWORLD / "subjects" / "teapot").glob("*.png"))
STEPS, CLASS_IMAGES = 12, 8


@pytest.fixture(scope="module")
def client(stack: OneMachine) -> booth.Client:
    return booth.Client(stack.base_url, stack.api_key)


@pytest.fixture(scope="module")
def job(client: booth.Client) -> booth.Job:
    """A short job that went all the way."""
    job = client.personalize(TEAPOT, "sks", "teapot", steps=STEPS, num_class_images=CLASS_IMAGES, seed=4)
    job.wait(timeout_s=400)
    return job.refresh()


@pytest.fixture(scope="module")
def model(client: booth.Client, job: booth.Job) -> booth.Model:
    return client.models.get(job.model_id)


def test_the_job_passed_every_state_and_said_where_it_was(job: booth.Job) -> None:
    events = list(job.events())
    states = list(dict.fromkeys(event.status for event in events))
    assert states == [
        JobState.QUEUED, JobState.PREPARING, JobState.TRAINING, JobState.PUBLISHING, JobState.SUCCEEDED
    ]  # fmt: skip
    assert any("2 ranks on CPUs for 8 rows" in event.message for event in events)
    trained = [event.progress for event in events if event.progress and event.progress.loss is not None]
    assert trained
    last, weight = trained[-1], job.params.prior_loss_weight
    assert last.loss == pytest.approx(last.instance_loss + weight * last.prior_loss, rel=1e-4)
    assert job.progress.step == job.progress.total_steps == STEPS
    assert job.params.seed == 4


def test_the_log_can_be_read_afterwards(job: booth.Job) -> None:
    text = "".join(job.logs())
    assert f"class images: 0 reused, {CLASS_IMAGES} made" in text
    assert "published tenants/" in text


def test_pictures_are_reproducible_and_differ_from_the_base(client: booth.Client, model: booth.Model) -> None:
    prompt = "a photo of sks teapot in the city"
    first = model.generate(prompt, num_images=2, seed=1, num_inference_steps=6)
    again = model.generate(prompt, num_images=1, seed=2, num_inference_steps=6)
    base = client.generate(prompt, base_model=model.base_model, num_images=1, seed=2, num_inference_steps=6)
    assert [picture.seed for picture in first] == [1, 2]
    assert first[1].image.tobytes() == again[0].image.tobytes()
    assert first[1].image.tobytes() != base[0].image.tobytes()
    assert first[0].image.size == (64, 64)


def test_many_pictures_by_a_job_are_those_of_the_endpoint_and_come_home_whole(
    client: booth.Client, model: booth.Model, tmp_path: Path
) -> None:
    prompts = ["a photo of sks teapot", "a photo of a cat on the beach", "a photo of sks teapot in the city"]
    settings = {"seed": 2**63 - 2, "num_inference_steps": 4, "negative_prompt": "a dog"}
    generation = model.generate_many(prompts, num_images=3, **settings)
    assert (generation.status, generation.total) == (booth.RunState.QUEUED, 9)
    generation.wait(timeout_s=400)
    pictures = list(generation.pictures())
    assert [picture.index for picture in pictures] == list(range(9))
    assert [picture.seed for picture in pictures[:3]] == [2**63 - 2, 2**63 - 1, 0]

    # Four at a time, as the job's blocks are: bits are promised for batches of one size.
    drawn = [each for prompt in (prompts[0], prompts[2]) for each in model.generate(prompt, num_images=4, **settings)]
    assert [each.png for each in pictures[:3] + pictures[6:]] == [each.png for each in drawn[:3] + drawn[4:7]]

    folder = generation.download(tmp_path / "out")
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [picture.name for picture in pictures]
    assert [line["prompt"] for line in lines] == [prompt for prompt in prompts for _ in range(3)]
    assert (folder / lines[4]["file"]).read_bytes() == pictures[4].png
    generation.delete()
    with pytest.raises(booth.NotFoundError):
        generation.refresh()


def test_a_model_is_scored_beside_its_base_and_told_of_in_a_report(
    stack: OneMachine, job: booth.Job, model: booth.Model, tmp_path: Path
) -> None:
    stack.register_encoders("tiny", str(write_tiny_suite(tmp_path / "suite")))
    prompts = ["a photo of a {subject} in the jungle", "a photo of a {subject} on the beach"]
    evaluation = model.evaluate(
        prompts=prompts, suite="tiny", num_images=2, num_class_images=2, seed=3, num_inference_steps=4
    )
    assert (evaluation.status, evaluation.total) == (booth.RunState.QUEUED, 2 * (4 + 2))
    evaluation.wait(timeout_s=400)
    assert evaluation.done == evaluation.total
    report = job.report()
    ours, base = report.table()
    assert (ours["arm"], base["arm"], ours["step"], base["step"]) == (model.name, "frozen base", STEPS, 0)
    assert None not in (ours["dino"], ours["clip_i"], ours["clip_t"], ours["pres"], ours["div"], ours["ceiling"])
    assert (ours["floor"], ours["dino"] != base["dino"]) == (base["dino"], True)

    # The model's pictures are those of the endpoint: four at a time, as the evaluation's blocks are.
    drawn = model.generate("a photo of a sks teapot in the jungle", num_images=4, seed=3, num_inference_steps=4)
    digests = [hashlib.sha256(each.png).hexdigest() for each in drawn[:2]]
    assert [each.sha256 for each in report.data.rows[0].score.pictures[:2]] == digests
    folder = report.save(tmp_path / "report")
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html", "sheet.png"}
    assert report.sheet.width > 200
    assert "data:image/webp;base64," in report.html


def test_the_downloaded_folder_is_plain_diffusers(model: booth.Model, tmp_path: Path) -> None:
    folder = model.download(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert pipeline("a photo of sks teapot", num_inference_steps=1, output_type="np").images.shape == (1, 64, 64, 3)
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        trained, base = load_file(folder / part), load_file(TINYWORLD / "base_model" / part)
        assert trained.keys() == base.keys()
        assert sum(not trained[name].equal(base[name]) for name in base) > 0.9 * len(base)


def test_the_serving_port_answers_the_control_plane_alone(stack: OneMachine) -> None:
    port = json.loads((stack.data_dir / "state.json").read_text())["service_ports"]["serve"]
    answer = httpx2.post(f"http://127.0.0.1:{port}/", json={}, trust_env=False)
    assert answer.status_code == 403


def test_a_second_job_reuses_the_class_images(client: booth.Client, job: booth.Job) -> None:
    second = client.personalize(
        TEAPOT[:1], None, "teapot", steps=2, num_class_images=CLASS_IMAGES, train_text_encoder=False
    )
    assert second.params.token != "sks"
    assert any("1 photo" in warning for warning in second.warnings)
    second.wait(timeout_s=400)
    assert f"class images: {CLASS_IMAGES} reused, 0 made" in "".join(second.logs())


def test_a_cancelled_job_with_class_images_of_its_own_ends_without_a_model(client: booth.Client) -> None:
    own = TINYWORLD / "subjects" / "cat"
    job = client.personalize(TEAPOT, "sks", "teapot", steps=5000, class_images=own, class_prompt="a photo of a cat")
    assert (job.params.num_class_images, job.params.class_prompt) == (5, "a photo of a cat")
    for event in job.events():
        if event.status is JobState.TRAINING and event.progress and event.progress.step > 0:
            break
    job.cancel()
    with pytest.raises(booth.JobCancelledError):
        job.wait(timeout_s=120)
    assert job.model_id is None
    assert "class images: 0 reused, 5 made (your own for sks teapot)" in "".join(job.logs())
