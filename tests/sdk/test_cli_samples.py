"""boothctl samples, and what other commands say of sample pictures and of the last step."""

import json
from pathlib import Path

import pytest
from PIL import Image
from scripted_service import (
    DONE,
    EVENTS,
    PARAMS,
    PROMPTS,
    SAMPLES,
    ScriptedService,
    event,
    job_record,
    page,
    sample_png,
    sampled,
)
from typer.testing import CliRunner, Result

from booth.cli import app
from booth.cli_output import progress_text
from booth.contract.jobs import Progress
from booth.contract.samples import JobSamples
from booth.contract.states import JobState


@pytest.fixture(autouse=True)
def server(service: ScriptedService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedService:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    monkeypatch.setattr("booth.transport.FIRST_PAUSE_S", 0.0)
    monkeypatch.chdir(tmp_path)
    sampling = PARAMS.model_copy(update={"sample_interval_steps": 2})
    service.on("GET", "/v1/jobs/job_1", job_record(params=sampling))
    service.on("GET", "/v1/models/mdl_1", 503)
    service.on("GET", SAMPLES, sampled(service, 2, 4, 6))
    return service


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_strip_lies_where_its_path_on_stdout_says() -> None:
    result = run("samples", "job_1")
    assert (result.exit_code, result.stdout) == (0, "job_1-samples.png\n")
    assert Image.open("job_1-samples.png").format == "PNG"


@pytest.mark.parametrize(("name", "kind"), [("new/strip.png", "PNG"), ("strip.JPG", "JPEG"), ("strip.webp", "WEBP")])
def test_the_suffix_names_the_format(name: str, kind: str) -> None:
    assert run("samples", "job_1", "-o", name).stdout == f"{name}\n"
    assert Image.open(name).format == kind


@pytest.mark.parametrize("folder", ["pictures", "dotted.d"])
def test_a_folder_takes_every_picture(folder: str) -> None:
    if folder == "dotted.d":
        Path(folder).mkdir()
    paths = [Path(line) for line in run("samples", "job_1", "-o", folder).stdout.splitlines()]
    assert [path.name for path in paths[:3]] == [
        "step00002-01-a-photo-of-sks-dog.png",
        "step00002-02-a-photo-of-sks-dog-on-the-beach.png",
        "step00004-01-a-photo-of-sks-dog.png",
    ]
    expected = [sample_png(step, number) for step in (2, 4, 6) for number in range(2)]
    assert [path.read_bytes() for path in paths] == expected


def test_json_says_what_was_written() -> None:
    assert json.loads(run("samples", "job_1", "-o", "s.png", "--json").stdout) == [
        {"path": "s.png", "steps": [2, 4, 6], "prompts": PROMPTS}
    ]
    each = json.loads(run("samples", "job_1", "-o", "pictures", "--json").stdout)
    assert [(entry["step"], entry["prompt"], entry["seed"]) for entry in each[1:3]] == [
        (2, PROMPTS[1], 7),
        (4, PROMPTS[0], 7),
    ]


def test_a_file_that_is_no_picture_is_2(server: ScriptedService) -> None:
    result = run("samples", "job_1", "-o", "strip.txt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert ".webp" in result.stderr
    assert server.calls == []


def test_a_job_without_samples_is_5(server: ScriptedService) -> None:
    server.on("GET", SAMPLES, JobSamples(steps=[]))
    result = run("samples", "job_1", "-o", "strip.png")
    assert (result.exit_code, result.stdout) == (5, "")
    assert "job_1 has no sample pictures" in result.stderr
    assert "by step 2" in result.stderr
    assert not Path("strip.png").exists()


def test_pictures_that_do_not_come_are_7_and_leave_no_strip(server: ScriptedService) -> None:
    server.on("GET", "/s3/4/1", 403)
    result = run("samples", "job_1", "-o", "strip.png")
    assert (result.exit_code, result.stdout) == (7, "")
    assert not Path("strip.png").exists()


def test_get_says_how_many_there_are(server: ScriptedService) -> None:
    assert "samples:   6 pictures of 3 steps; see them: boothctl samples job_1\n" in run("get", "job_1").stdout
    server.on("GET", SAMPLES, JobSamples(steps=[]))
    assert "samples:   none yet\n" in run("get", "job_1").stdout


def test_get_asks_nothing_of_a_job_that_draws_none(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs/job_1", job_record())
    result = run("get", "job_1")
    assert result.exit_code == 0
    assert "samples:" not in result.stdout
    assert server.asked("GET", SAMPLES) == []


def test_a_follower_hears_of_new_samples(server: ScriptedService) -> None:
    drawn = event(1, JobState.TRAINING, "Sample pictures of step 2.").model_copy(update={"kind": "samples"})
    server.on("GET", EVENTS, page(drawn), page(job=DONE))
    assert "training: Sample pictures of step 2.\n" in run("wait", "job_1").stderr


def test_progress_says_what_is_known_of_the_last_step_the_vital_first() -> None:
    progress = Progress(
        phase="training",
        step=5,
        total_steps=10,
        loss=0.25,
        instance_loss=0.2,
        prior_loss=0.05,
        images_per_second=3.14159,
        eta_s=5,
        grad_norm=1.2345,
        learning_rate=1e-5,
        text_encoder_learning_rate=5e-6,
        mfu=0.413,
        peak_memory_bytes=12 * 2**30,
    )
    assert progress_text(progress) == (
        "training 5/10, loss 0.2500, 3.14 images/s, 5 s left, instance 0.2000, prior 0.0500, grad 1.23, "
        "lr 1e-05/5e-06, MFU 41%, peak 12.0 GiB"
    )
    only = Progress(phase="training", step=5, total_steps=10, loss=0.25, instance_loss=0.25, learning_rate=0.0)
    assert progress_text(only) == "training 5/10, loss 0.2500, lr 0"
