"""A job's scores, in Python and on the command line. Against a real HTTP server."""

import json

import pytest
from scripted_service import PARAMS, ScriptedService, job_record
from typer.testing import CliRunner, Result

from booth import Client, Score
from booth.cli import app
from booth.contract.evaluation import JobScores
from booth.contract.jobs import PromptCase, Scoring
from booth.contract.states import JobState

SCORING = Scoring(
    steps=[0, 5, 10],
    cases=[PromptCase(kind="own", prompt="a sks dog", text="a dog", clip_text="a dog")],
    class_prompt="a photo of a dog",
    num_images=4,
    num_class_images=0,
    seed=0,
    guidance_scale=1,
    num_inference_steps=1,
    suite="paper",
    suite_id="suite_1",
)
CURVE = [
    Score(step=0, suite="paper", dino=0.25, clip_i=0.5, clip_t=0.3, ceiling_dino=0.8, ceiling_clip_i=0.9),
    Score(step=5, suite="paper", dino=0.5, clip_i=0.625, clip_t=0.28, accuracies={"context": 0.75}),
    Score(step=10, suite="paper", dino=0.75, clip_i=0.7, clip_t=0.2, memorised=[1, 3], warnings=["Memorised?"]),
]


@pytest.fixture(autouse=True)
def server(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> ScriptedService:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    scored = PARAMS.model_copy(update={"scoring": SCORING})
    service.on("GET", "/v1/jobs/job_1", job_record(JobState.SUCCEEDED, params=scored, selected_step=5))
    service.on("GET", "/v1/jobs/job_1/scores", JobScores(scores=CURVE, selected_step=5))
    return service


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_scores_and_the_selected_step_in_python(service: ScriptedService) -> None:
    with Client(service.url, "key") as client:
        job = client.jobs.get("job_1")
        assert job.scores() == CURVE
        assert job.selected_step == 5


def test_the_curve_is_a_table_with_the_published_step_marked() -> None:
    result = run("scores", "job_1")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["STEP", "DINO", "CLIP-I", "CLIP-T", "CONTEXT", "MEMORISED", "PUBLISHED"],
        ["0", "0.250", "0.500", "0.300", "-", "0"],
        ["5", "0.500", "0.625", "0.280", "0.750", "0", "*"],
        ["10", "0.750", "0.700", "0.200", "-", "2"],
    ]
    assert "the photos among themselves: DINO 0.800, CLIP-I 0.900; encoders: paper" in result.stderr
    assert "warning: step 10: Memorised?" in result.stderr


def test_as_json() -> None:
    told = json.loads(run("scores", "job_1", "--json").stdout)
    assert told["selected_step"] == 5
    assert [Score.model_validate(each) for each in told["scores"]] == CURVE


def test_a_job_without_scores_says_why(service: ScriptedService) -> None:
    service.on("GET", "/v1/jobs/job_1/scores", JobScores(scores=[]))
    assert "they come after training" in run("scores", "job_1").stderr
    service.on("GET", "/v1/jobs/job_1", job_record())
    result = run("scores", "job_1")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "options.scoring" in result.stderr
