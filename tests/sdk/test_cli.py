"""boothctl: what goes to stdout, what to stderr, and the exit code of every kind of end."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import photo_files as files
import pytest
from scripted_service import (
    CUT,
    DONE,
    EVENTS,
    MODEL,
    PREPARED,
    ScriptedService,
    event,
    job_record,
    log,
    page,
    problem,
    sent_json,
)
from tiny_job import RECIPE
from typer.testing import CliRunner, Result

from booth import Lora, Model, cli_operator
from booth.cli import app
from booth.contract.encoders import EncoderSuitePage, EncoderSuiteRecord
from booth.contract.jobs import JobFailure, JobPage, Progress
from booth.contract.lora import Energy
from booth.contract.models import (
    BaseModelPage,
    BaseModelRecord,
    GenerateAnswer,
    ModelFile,
    ModelFiles,
    ModelPage,
    Picture,
)
from booth.contract.states import FailureReason, JobState

SUBMIT = ("submit", "--token", "sks", "--class", "dog")


@pytest.fixture(autouse=True)
def server(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> ScriptedService:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    monkeypatch.setattr("booth.transport.FIRST_PAUSE_S", 0.0)
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/jobs", job_record())
    service.on("GET", "/v1/jobs/job_1", job_record())
    service.on("GET", EVENTS, page(event(1, JobState.SUCCEEDED, "Published."), job=DONE), page(job=DONE))
    service.on("GET", "/v1/models/mdl_1", MODEL)
    return service


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_submit_follows_and_prints_the_models_id(photo: Path) -> None:
    result = run(*SUBMIT, photo)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "mdl_1\n"
    assert "succeeded: Published." in result.stderr


def test_submit_detached_prints_the_jobs_id_alone(photo: Path, server: ScriptedService) -> None:
    result = run(*SUBMIT, photo, "-d")
    assert (result.exit_code, result.stdout) == (0, "job_1\n")
    assert server.asked("GET", EVENTS) == []


@pytest.mark.parametrize("detached", [["-d"], []])
def test_submit_in_json_is_one_document(photo: Path, detached: list[str]) -> None:
    document = json.loads(run(*SUBMIT, photo, "--json", *detached).stdout)
    assert document["id"] == "job_1"


def test_submit_passes_every_dial_on(photo: Path, server: ScriptedService) -> None:
    dials = {
        "base_model": "tiny",
        "steps": 5,
        "learning_rate": 1e-4,
        "method": "dreambooth",
        "prior_loss_weight": 0.5,
        "num_class_images": 8,
        "resolution": 64,
        "train_batch_size": 2,
        "seed": 3,
        "name": "rex",
    }
    flags = [text for name, value in dials.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    result = run(*SUBMIT, photo, "-d", "--freeze-text-encoder", "--idempotency-key", "mine", *flags)
    assert result.exit_code == 0, result.stderr
    [call] = server.asked("POST", "/v1/jobs")
    spec = sent_json(call)
    assert {name: spec[name] for name in dials} == dials
    assert spec["train_text_encoder"] is False
    assert call.headers["Idempotency-Key"] == "mine"


def test_warnings_go_to_stderr(photo: Path, server: ScriptedService) -> None:
    server.on("POST", "/v1/jobs", job_record(warnings=["One photo is few."]))
    result = run(*SUBMIT, photo, "-d")
    assert result.stdout == "job_1\n"
    assert "warning: One photo is few.\n" in result.stderr


def test_progress_is_one_line_for_each_change(photo: Path, server: ScriptedService) -> None:
    def step(number: int) -> object:
        progress = Progress(phase="training", step=number, total_steps=100, loss=0.25, eta_s=65)
        record = event(number, JobState.TRAINING)
        return record.model_copy(update={"kind": "progress", "progress": progress})

    server.on("GET", EVENTS, page(*(step(number) for number in range(1, 11))), page(job=DONE))
    lines = [line for line in run(*SUBMIT, photo).stderr.splitlines() if "training" in line]
    assert [line.split()[2] for line in lines] == ["1/100,", "5/100,", "10/100,"]
    assert lines[0].endswith("training 1/100, loss 0.2500, 1 min 5 s left")


@pytest.mark.parametrize("arguments", [("submit", "x.png"), ("generate", "mdl_1"), ("fly",), ("ls", "--status", "odd")])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_failed_job_is_3(photo: Path, server: ScriptedService) -> None:
    reason = FailureReason.OUT_OF_MEMORY
    failure = JobFailure(reason=reason, message=reason.message, remedy=reason.remedy)
    server.on("GET", EVENTS, page(job=job_record(JobState.FAILED, error=failure)))
    result = run(*SUBMIT, photo)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "ran out of memory. Lower resolution" in result.stderr


def test_a_failed_job_in_json_is_still_a_document(photo: Path, server: ScriptedService) -> None:
    server.on("GET", EVENTS, page(job=job_record(JobState.FAILED)))
    result = run(*SUBMIT, photo, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["status"] == "failed"


def test_a_wrong_key_is_4(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs", problem("unauthenticated", 401, "This API key is not known."))
    result = run("ls")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "This API key is not known. (request req-1)" in result.stderr


def test_a_missing_key_is_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOOTH_API_KEY")
    result = run("ls")
    assert result.exit_code == 4
    assert "Set BOOTH_API_KEY" in result.stderr


@pytest.mark.parametrize("command", ["get", "wait", "logs", "cancel"])
def test_an_unknown_job_is_5(command: str) -> None:
    result = run(command, "job_9")
    assert result.exit_code == 5
    assert "job_9" in result.stderr


def test_bad_photos_and_dials_are_6_and_all_named(tmp_path: Path, server: ScriptedService) -> None:
    files.text_named_jpg(tmp_path)
    files.truncated_jpeg(tmp_path)
    result = run(*SUBMIT, tmp_path, "--steps", "0", "--learning-rate", "nan")
    assert (result.exit_code, result.stdout) == (6, "")
    for bad in ("notes.jpg", "truncated.jpg", "steps = 0", "learning_rate = nan"):
        assert bad in result.stderr
    assert server.calls == []


def test_a_refusal_by_the_service_is_6(photo: Path, server: ScriptedService) -> None:
    server.on("POST", "/v1/jobs", problem("invalid", 422, "This key was used for another job."))
    assert run(*SUBMIT, photo).exit_code == 6


def test_a_folder_that_is_not_empty_is_6(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = run("download", "mdl_1", tmp_path)
    assert result.exit_code == 6
    assert str(tmp_path) in result.stderr


@pytest.mark.parametrize("answer", [CUT, 502, 503])
def test_a_server_away_is_7(server: ScriptedService, answer: int) -> None:
    server.on("GET", "/v1/jobs", answer)
    result = run("ls")
    assert result.exit_code == 7
    assert server.url in result.stderr


def test_no_server_at_all_is_7(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOOTH_BASE_URL")
    result = run("ls")
    assert result.exit_code == 7
    assert "boothctl up" in result.stderr


def test_a_cancelled_job_is_8(server: ScriptedService) -> None:
    server.on("GET", EVENTS, page(job=job_record(JobState.CANCELLED)))
    assert run("wait", "job_1").exit_code == 8


def test_a_wait_that_runs_out_is_124(server: ScriptedService) -> None:
    server.on("GET", EVENTS, page())
    result = run("wait", "job_1", "--timeout", "0")
    assert result.exit_code == 124
    assert "goes on" in result.stderr


def _heed_ctrl_c() -> None:
    """A shell's background jobs ignore SIGINT, and so would what the tests start when they run in one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_130_and_leaves_the_job_alone(server: ScriptedService) -> None:
    server.on("GET", EVENTS, page(event(1, JobState.TRAINING)), page())
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "booth.cli", "wait", "job_1"]
    popen = partial(subprocess.Popen, env=environment, stdout=-1, stderr=-1, text=True)
    with popen(command, preexec_fn=_heed_ctrl_c) as process:
        while len(server.asked("GET", EVENTS)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "job_1 goes on. Follow it: boothctl wait job_1. Cancel it: boothctl cancel job_1" in err
    assert server.asked("POST", "/v1/jobs/job_1/cancel") == []


def test_an_unexpected_answer_is_1(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs", b"<html>")
    result = run("ls")
    assert result.exit_code == 1
    assert "not what a Booth service says" in result.stderr


def test_ls_aligns_its_columns(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs", JobPage(jobs=[job_record(id="job_12"), job_record()]))
    header, first, second = run("ls").stdout.splitlines()
    assert header.split() == ["ID", "STATUS", "STEP", "CLASS", "CREATED", "GROUP", "NAME"]
    assert first.index("queued") == second.index("queued") == header.index("STATUS")


def test_an_empty_list_is_an_empty_document_and_a_hint(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs", JobPage(jobs=[]))
    server.on("GET", "/v1/models", ModelPage(models=[]))
    for command, hint in (("ls", "boothctl submit"), ("models", "no models")):
        assert json.loads(run(command, "--json").stdout) == []
        result = run(command)
        assert (result.exit_code, result.stdout) == (0, "")
        assert hint in result.stderr


def test_get_shows_every_parameter() -> None:
    assert "  seed: 7\n" in run("get", "job_1").stdout
    assert json.loads(run("get", "job_1", "--json").stdout)["params"]["seed"] == 7


def test_logs_are_stdout(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs/job_1/logs", log("one\n", 4), log("two\n", 8), log("", 8))
    assert run("logs", "job_1").stdout == "one\ntwo\n"


def test_logs_in_json_are_one_document_a_line(server: ScriptedService) -> None:
    server.on("GET", "/v1/jobs/job_1/logs", log("one\n", 4), log("", 4))
    assert [json.loads(line) for line in run("logs", "job_1", "--json").stdout.splitlines()] == [{"text": "one\n"}]


def test_cancel_prints_the_jobs_id(server: ScriptedService) -> None:
    server.on("POST", "/v1/jobs/job_1/cancel", job_record(cancel_requested=True))
    assert run("cancel", "job_1").stdout == "job_1\n"


def test_models_say_how_to_name_the_subject(server: ScriptedService) -> None:
    server.on("GET", "/v1/models", ModelPage(models=[MODEL]))
    assert "sks dog" in run("models").stdout
    assert json.loads(run("models", "--json").stdout)[0]["prompt_prefix"] == "sks dog"
    server.on("GET", "/v1/models", ModelPage(models=[MODEL.model_copy(update={"more_prompt_prefixes": ["zwx cat"]})]))
    assert "sks dog + zwx cat" in run("models").stdout


def test_generate_saves_pictures_and_prints_their_paths(server: ScriptedService, tmp_path: Path) -> None:
    encoded = base64.b64encode(b"png").decode()
    prompts = ["a sks dog; rm -rf /", "a sks dog in the snow"]
    pictures = [Picture(png_base64=encoded, prompt=prompt, seed=4) for prompt in prompts]
    answer = GenerateAnswer(pictures=pictures, guidance_scale=5, num_inference_steps=9)
    server.on("POST", "/v1/models/mdl_1/generate", answer)
    flags = [text for prompt in prompts for text in ("--prompt", prompt)]
    result = run("generate", "mdl_1", *flags, "-n", "1", "--seed", "4", "-o", tmp_path / "out")
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in paths] == ["001-a-sks-dog-rm-rf-4.png", "002-a-sks-dog-in-the-snow-4.png"]
    assert all(path.read_bytes() == b"png" for path in paths)
    assert json.loads(run("generate", "mdl_1", *flags, "-o", tmp_path, "--json").stdout)[1]["seed"] == 4


def test_download_prints_the_folder(server: ScriptedService, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"{}").hexdigest()
    file = ModelFile(path="model_index.json", bytes=2, sha256=digest, url=f"{server.url}/s3/f")
    server.on("GET", "/v1/models/mdl_1/files", ModelFiles(files=[file]))
    server.on("GET", "/s3/f", b"{}")
    assert run("download", "mdl_1", tmp_path / "dog").stdout == f"{tmp_path / 'dog'}\n"
    assert (tmp_path / "dog" / "model_index.json").read_bytes() == b"{}"


def test_download_takes_a_format_and_names_those_there_are(server: ScriptedService, tmp_path: Path) -> None:
    result = run("download", "mdl_1", tmp_path / "dog", "--format", "ckpt")
    assert result.exit_code == 6
    assert "Choose one of diffusers, original, lora, embedding." in result.stderr
    result = run("download", "mdl_1", tmp_path / "dog.safetensors", "--format", "original", "--rank", "4")
    assert result.exit_code == 6
    assert "The format 'original' has no rank" in result.stderr


def test_download_of_a_lora_prints_the_path_and_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "dog.safetensors"
    energy = {"unet": Energy(kept=60, total=80), "text_encoder": Energy(kept=10, total=20)}
    monkeypatch.setattr(Model, "download", lambda self, path, format, rank: Lora(path, rank, energy))
    arguments = ("download", "mdl_1", path, "--format", "lora", "--rank", "8")
    result = run(*arguments)
    assert result.stdout == f"{path}\n"
    assert result.stderr.splitlines() == [
        "rank 8 keeps 70.0% of the energy of the training's change:",
        "  unet: 75.0%",
        "  text_encoder: 50.0%",
    ]
    assert json.loads(run(*arguments, "--json").stdout) == {
        "path": str(path),
        "rank": 8,
        "kept": 0.7,
        "kept_by_component": {"unet": 0.75, "text_encoder": 0.5},
    }


def test_an_unwritable_place_is_1_without_a_traceback(server: ScriptedService, tmp_path: Path) -> None:
    answer = GenerateAnswer(pictures=[], guidance_scale=5, num_inference_steps=9)
    server.on("POST", "/v1/models/mdl_1/generate", answer)
    (tmp_path / "file").touch()
    result = run("generate", "mdl_1", "--prompt", "x", "-o", tmp_path / "file" / "in")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("command", ["up", "admin", "demo"])
def test_operator_commands_name_the_missing_extra(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(cli_operator, "_MODULES", ("json", "not_installed_anywhere"))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it must not start"))
    monkeypatch.setattr(Path, "exists", lambda _: True)
    result = run(command)
    assert result.exit_code == 2
    assert "not_installed_anywhere" in result.stderr
    assert 'pip install "booth[service,local]"' in result.stderr


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        (("up", "--data-dir", "d", "--port", "7", "--json"), ["up", "--data-dir", "d", "--port", "7", "--json"]),
        (("admin", "tenants", "--help"), ["admin", "tenants", "--help"]),
        (("base-models", "add", "x", "o/n", "--recipe", "sd15"), ["register", "x", "o/n", "--recipe", "sd15"]),
        (("base-models", "add", "--help"), ["register", "--help"]),
        (("encoders", "add", "paper", "--clip", "o/n"), ["register_encoders", "paper", "--clip", "o/n"]),
        (("encoders", "add", "--help"), ["register_encoders", "--help"]),
    ],
)
def test_operator_commands_become_the_local_stack(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], passed_on: list[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cli_operator, "_require_service", lambda: None)
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    run(*given)
    assert started == [[sys.executable, "-m", "booth_service.local", *passed_on]]


def test_models_are_deleted_and_listed(server: ScriptedService) -> None:
    server.on("GET", "/v1/models", ModelPage(models=[MODEL]))
    server.on("DELETE", "/v1/models/mdl_1", b"")
    assert run("models", "ls").stdout == run("models").stdout
    assert json.loads(run("models", "ls", "--json").stdout)[0]["id"] == "mdl_1"
    assert run("models", "rm", "mdl_1").stdout == "mdl_1\n"
    assert json.loads(run("models", "rm", "mdl_1", "mdl_1", "--json").stdout) == [{"id": "mdl_1"}] * 2
    assert len(server.asked("DELETE", "/v1/models/mdl_1")) == 3


def test_a_model_that_is_not_there_cannot_be_deleted(server: ScriptedService) -> None:
    server.on("DELETE", "/v1/models/mdl_9", problem("not_found", 404))
    assert run("models", "rm", "mdl_9").exit_code == 5


def test_base_models_are_listed_with_where_they_come_from(server: ScriptedService) -> None:
    base = BaseModelRecord(
        name="sd15", family="stable-diffusion", is_default=True, recipe=RECIPE, bytes=3 * 2**30, source="owner/sd",
        revision="c" * 40, has_ip_adapter=True,
    )  # fmt: skip
    changes = {"name": "own", "is_default": False, "source": "", "revision": None, "has_ip_adapter": False}
    own = base.model_copy(update=changes)
    server.on("GET", "/v1/base-models", BaseModelPage(base_models=[base, own]))
    for command in (("base-models",), ("base-models", "ls")):
        _, first, second = run(*command).stdout.splitlines()
        start, source = ["sd15", "(default)", "stable-diffusion", "32", "3.00", "GiB", "yes"], "owner/sd@cccccccccccc"
        assert first.split() == [*start, source]
        assert second.split() == ["own", "stable-diffusion", "32", "3.00", "GiB", "-", "-"]
    assert json.loads(run("base-models", "--json").stdout)[0]["recipe"]["resolution"] == 32
    server.on("GET", "/v1/base-models", BaseModelPage(base_models=[]))
    assert "boothctl base-models add" in run("base-models").stderr


def test_encoders_are_listed_with_their_attributes(server: ScriptedService) -> None:
    suite = EncoderSuiteRecord(
        name="tinyworld", bytes=3 * 2**20, heads=["context", "noun"], created_at=MODEL.created_at
    )
    server.on("GET", "/v1/encoder-suites", EncoderSuitePage(suites=[suite]))
    for command in (("encoders",), ("encoders", "ls")):
        _, line = run(*command).stdout.splitlines()
        assert line.split() == ["tinyworld", "3.0", "MiB", "context,", "noun", "-"]
    assert json.loads(run("encoders", "--json").stdout)[0]["heads"] == ["context", "noun"]
    server.on("GET", "/v1/encoder-suites", EncoderSuitePage(suites=[]))
    assert "boothctl encoders add" in run("encoders").stderr


def test_plan_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(cli_operator, "_MODULES", ("not_installed_anywhere",))
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    run("plan", "--base-model", "sdxl", "--gpus", "4", "--help")
    assert started == [
        [sys.executable, "-m", "booth_service.plan_report", "--base-model", "sdxl", "--gpus", "4", "--help"]
    ]
