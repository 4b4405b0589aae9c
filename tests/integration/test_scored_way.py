"""A job that chooses among its checkpoints, on all the real parts: trained, scored by a pool, published from a step."""

from pathlib import Path

import pytest
from one_machine import OneMachine
from tiny_suite import write_tiny_suite

import booth
from booth.contract.states import JobState

pytestmark = pytest.mark.ray

TEAPOT = sorted((Path(__file__).parents[2] / "examples" / "tinyworld" / "subjects" / "teapot").glob("*.png"))
STEPS, EARLY, CLASS_IMAGES = 4, 2, 8


@pytest.fixture(scope="module")
def job(stack: OneMachine, tmp_path_factory: pytest.TempPathFactory) -> booth.Job:
    stack.register_encoders("tiny-scored", str(write_tiny_suite(tmp_path_factory.mktemp("suite") / "tiny")))
    scoring = booth.ScoringOptions(
        steps=[0, EARLY, -1],
        prompts=["a photo of {0} {1} in the jungle", "a photo of {0} {1} on the beach"],
        num_images=1,
        num_class_images=2,
        num_inference_steps=2,
        suite="tiny-scored",
    )
    with booth.Client(stack.base_url, stack.api_key) as client:
        job = client.personalize(
            TEAPOT,
            "sks",
            "teapot",
            steps=STEPS,
            num_class_images=CLASS_IMAGES,
            class_prompt="a picture of a teapot",  # test_whole_way counts the class images it makes itself
            seed=4,
            options=booth.TrainingOptions(scoring=scoring, select_checkpoint="fidelity"),
        )
        job.wait(timeout_s=400)
        yield job.refresh()


def test_the_job_is_scored_and_publishes_a_step_of_its_choice(job: booth.Job) -> None:
    events = list(job.events())
    states = list(dict.fromkeys(event.status for event in events))
    assert states == [
        JobState.QUEUED, JobState.PREPARING, JobState.TRAINING, JobState.EVALUATING, JobState.SUCCEEDED
    ]  # fmt: skip
    assert not [warning for warning in job.warnings if "not scored" in warning]
    scores = job.scores()
    assert [score.step for score in scores] == [0, EARLY, STEPS]
    for score in scores:
        assert None not in (score.dino, score.clip_i, score.clip_t, score.pres, score.ceiling_dino)
        assert score.suite == "tiny-scored"
        assert set(score.accuracies) == {"context"}
    assert job.selected_step in (EARLY, STEPS)
    notes = [event.message for event in events if event.kind == "note"]
    assert any(note.startswith("scoring steps 0, 2, 4: 12 pictures of 2 denoising steps") for note in notes)
    assert any(note.startswith(f"step {job.selected_step} is published: the best trade-off") for note in notes)
    scored = [event.message for event in events if event.kind == "scores"]
    assert sorted(message.split(":")[0] for message in scored) == [f"Scores of step {s}" for s in (0, EARLY, STEPS)]


def test_the_model_is_that_of_the_step(job: booth.Job, stack: OneMachine) -> None:
    """Its log says what was restored, and it draws."""
    log = "".join(job.logs())
    assert f"step {job.selected_step} is published" in log
    assert "published tenants/" in log
    assert f"restored step {job.selected_step}" in [e.message for e in job.events() if e.kind == "note"]
    with booth.Client(stack.base_url, stack.api_key) as client:
        (picture,) = client.models.get(job.model_id).generate("a photo of sks teapot", num_inference_steps=2)
    assert picture.image.size == (64, 64)
