"""Evaluations, reports and boothctl's commands for them, against a real HTTP server with scripted answers."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scripted_service import DONE as JOB
from scripted_service import MODEL, NOW, ScriptedService, problem, sent_json
from typer.testing import CliRunner, Result

from booth import Client, ConflictError, Evaluation, JobFailedError, NotFoundError, TransferError, ValidationError
from booth.cli import app
from booth.contract.evaluation import (
    EvaluationPage,
    EvaluationRecord,
    EvaluationSettings,
    EvaluationSpec,
    ReportFile,
    ReportFiles,
    ReportRow,
)
from booth.contract.evaluation import Report as ReportData
from booth.contract.jobs import JobFailure
from booth.contract.scores import Score
from booth.contract.states import RunState

ONE = "/v1/evaluations/eval_1"
SETTINGS = EvaluationSettings(
    spec=EvaluationSpec(model_id="mdl_1"), suite="paper", suite_id="enc_1", guidance_scale=4.0,
    num_inference_steps=20, resolution=64, templates=["a {0} {1} in the snow"],
)  # fmt: skip
WARNING = "Memorised? DINO 0.900 is above the ceiling 0.800."


def record(status: RunState = RunState.QUEUED, done: int = 0, **changes: object) -> EvaluationRecord:
    found = EvaluationRecord(
        id="eval_1", model_id="mdl_1", status=status, status_detail="Waiting.", done=done, total=40,
        settings=SETTINGS, seconds_per_picture=2.5, created_at=NOW,
    )  # fmt: skip
    return found.model_copy(update=changes)


DONE = record(RunState.SUCCEEDED, done=40, status_detail="All pictures are there.")


def row(arm: str, step: int, dino: float, **more: object) -> ReportRow:
    score = Score(
        step=step, suite="paper", dino=dino, clip_t=0.3, ceiling_dino=0.8, accuracies={"context": 0.5}, **more
    )
    return ReportRow(subject="dog", arm=arm, score=score)


REPORT = ReportData(
    title="Evaluation of dog",
    rows=[row("sks dog", 30, 0.9, warnings=[WARNING], memorised=[1, 3]), row("frozen base", 0, 0.25)],
)


def sheet() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (12, 8), (9, 9, 9)).save(out, "PNG")
    return out.getvalue()


FILES = {"report.json": REPORT.model_dump_json().encode(), "report.html": b"<html>", "sheet.png": sheet()}


def put_report(service: ScriptedService, path: str, files: dict[str, bytes] = FILES) -> None:
    for name, body in files.items():
        service.on("GET", f"/s3/{name}", body)
    linked = [
        ReportFile(name=name, bytes=len(body), url=f"{service.url}/s3/{name}?sig=x") for name, body in files.items()
    ]
    service.on("GET", path, ReportFiles(files=linked))


@pytest.fixture(autouse=True)
def client(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    monkeypatch.setattr("booth.transport.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("booth.reports.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("booth.runs.POLL_PAUSE_S", 0.0)
    service.on("GET", "/v1/models/mdl_1", MODEL)
    service.on("POST", "/v1/evaluations", record())
    service.on("GET", ONE, DONE)
    put_report(service, f"{ONE}/report")
    with Client() as found:
        yield found


def begun(client: Client, **settings: object) -> Evaluation:
    return client.models.get("mdl_1").evaluate(**settings)


def test_what_was_asked_is_sent_once_under_a_key(client: Client, service: ScriptedService) -> None:
    evaluation = begun(
        client, prompt_set="art", description="a brown dog", compare=[client.models.get("mdl_1"), "mdl_2"]
    )
    assert (evaluation.id, evaluation.status, evaluation.total, evaluation.estimated_s) == (
        "eval_1",
        "queued",
        40,
        100.0,
    )
    (call,) = service.asked("POST", "/v1/evaluations")
    assert call.headers["Idempotency-Key"]
    sent = {name: value for name, value in sent_json(call).items() if value not in (None, [])}
    assert sent == {
        "model_id": "mdl_1",
        "prompt_set": "art",
        "description": "a brown dog",
        "compare": ["mdl_1", "mdl_2"],
        "num_images": 4,
        "num_class_images": 16,
        "clip_text": "noun",
        "seed": 0,
        "scheduler": "base",
        "subject": 0,
    }


def test_prompts_come_from_a_list_or_a_file(client: Client, service: ScriptedService, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa {0} {1} in the snow\n\n a {subject} at sea \n", encoding="utf-8")
    begun(client, prompts=path)
    begun(client, prompts=["a {0} {1} in the snow"], idempotency_key="mine")
    first, second = service.asked("POST", "/v1/evaluations")
    assert sent_json(first)["prompts"] == ["a {0} {1} in the snow", "a {subject} at sea"]
    assert (sent_json(second)["prompts"], second.headers["Idempotency-Key"]) == (["a {0} {1} in the snow"], "mine")


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"prompts": []}, "prompts", "no prompt"),
        ({"prompts": ["a {0} dog", "a dog"]}, "prompts.1", "nowhere where the subject stands"),
        ({"prompt_set": "nonsense"}, "prompt_set", "'nonsense'"),
        ({"num_images": 0}, "num_images", "greater"),
        ({"compare": ["m"] * 9}, "compare", "at most 8"),
        ({"clip_text": "all"}, "clip_text", "'noun'"),
    ],
)
def test_bad_input_is_named_before_anything_is_sent(
    client: Client, service: ScriptedService, settings: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        begun(client, **settings)
    (found,) = refused.value.problems
    assert (found.field, said in found.message, found.remedy != "") == (field, True, True)
    assert service.asked("POST", "/v1/evaluations") == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "has no prompt in it"),
        (b"\n \n", "has no prompt in it"),
        (b"a {0} dog\na dog\n", "line 2 says nowhere"),
        (b"\xff", "UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_is_named(client: Client, tmp_path: Path, body: bytes | None, said: str) -> None:
    path = tmp_path / "prompts.txt"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(ValidationError, match=said):
        begun(client, prompts=path)


def test_its_way_is_followed_to_its_report(client: Client, service: ScriptedService, tmp_path: Path) -> None:
    service.on("GET", ONE, record(RunState.RUNNING, 10), *[503] * 3, DONE)
    seen: list[int] = []
    report = begun(client).wait(on_progress=lambda each: seen.append(each.done)).report()
    assert (seen[0], seen[-1]) == (10, 40)
    ours, base = report.table()
    assert (ours["arm"], ours["dino"], ours["ceiling"], ours["floor"], ours["memorised"]) == (
        "sks dog",
        0.9,
        0.8,
        0.25,
        2,
    )
    assert (base["step"], base["pres"], base["context_right"]) == (0, None, 0.5)
    assert (report.html, report.sheet.size) == ("<html>", (12, 8))
    assert report.warnings == [f"sks dog: {WARNING}"]
    folder = report.save(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES


def test_a_report_before_the_end_and_other_ends_are_raised(client: Client, service: ScriptedService) -> None:
    evaluation = begun(client)
    service.on("GET", f"{ONE}/report", problem("conflict", 409))
    with pytest.raises(ConflictError):
        evaluation.report()
    error = JobFailure(reason="cannot_score", message="The pictures cannot be scored.", remedy="Do it.", detail="row 3")
    service.on("GET", ONE, record(RunState.FAILED, error=error))
    with pytest.raises(JobFailedError, match=r"The pictures cannot be scored\. \(row 3\) Do it\."):
        evaluation.wait()


def test_a_link_that_ran_out_is_asked_for_anew(client: Client, service: ScriptedService) -> None:
    report = begun(client).report()
    service.on("GET", "/s3/report.html", 403, b"<html>")
    assert report.html == "<html>"
    assert len(service.asked("GET", f"{ONE}/report")) == 2
    service.on("GET", "/s3/sheet.png", b"short")
    with pytest.raises(TransferError, match=r"sheet\.png came with 5 of"):
        _ = report.sheet
    put_report(service, f"{ONE}/report", {"report.json": FILES["report.json"]})
    with pytest.raises(NotFoundError, match=r"no sheet\.png"):
        _ = begun(client).report().sheet


def test_a_jobs_report_is_that_of_its_model(client: Client, service: ScriptedService) -> None:
    service.on("GET", "/v1/jobs/job_1", JOB)
    put_report(service, "/v1/jobs/job_1/report")
    assert client.jobs.get("job_1").report().data.title == "Evaluation of dog"
    service.on("GET", "/v1/jobs/job_1/report", problem("not_found", 404))
    with pytest.raises(NotFoundError):
        client.jobs.get("job_1").report()


def boothctl(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_evaluate_prints_the_table_and_saves_the_report(service: ScriptedService, tmp_path: Path) -> None:
    service.on("GET", ONE, record(RunState.RUNNING, 10, eta_s=75.0, images_per_second=0.4), DONE)
    done = boothctl("evaluate", "mdl_1", "--prompt-set", "art", "-n", 2, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ARM", "DINO", "CLIP_T", "CEILING", "FLOOR", "CONTEXT_RIGHT", "MEMORISED"]
    assert lines[1].split("  ")[0] == "sks dog"
    assert lines[1].split()[2:] == ["0.900", "0.300", "0.800", "0.250", "0.500", "2"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)
    assert "40 pictures of all arms together, about 1 min 40 s by the last one like it" in done.stderr
    assert f"warning: sks dog: {WARNING}" in done.stderr
    assert "0.40 images/s 1 min 15 s left" in done.stderr
    (call,) = service.asked("POST", "/v1/evaluations")
    assert (sent_json(call)["prompt_set"], sent_json(call)["num_images"]) == ("art", 2)


def test_one_that_goes_on_is_taken_up_by_its_id(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("booth.runs.Run.wait", interrupt)
        stopped = boothctl("evaluate", "mdl_1", "-o", "out")
    assert stopped.exit_code == 130
    assert "eval_1 goes on. Take it up: boothctl evaluate mdl_1 --evaluation eval_1 -o out." in stopped.stderr
    assert "boothctl evaluations cancel eval_1" in stopped.stderr
    taken = boothctl("evaluate", "mdl_1", "--evaluation", "eval_1", "--json")
    assert len(service.asked("POST", "/v1/evaluations")) == 1
    document = json.loads(taken.stdout)
    assert (document["evaluation"]["id"], document["table"][0]["dino"]) == ("eval_1", 0.9)
    other = boothctl("evaluate", "mdl_2", "--evaluation", "eval_1")
    assert (other.exit_code, "is of model mdl_1, not of mdl_2" in other.stderr) == (2, True)


def test_detached_failed_and_refused_ones(service: ScriptedService, tmp_path: Path) -> None:
    assert boothctl("evaluate", "mdl_1", "-d").stdout == "eval_1\n"
    service.on("GET", ONE, record(RunState.FAILED))
    assert boothctl("evaluate", "mdl_1").exit_code == 3
    service.on("GET", ONE, record(RunState.CANCELLED))
    assert boothctl("evaluate", "mdl_1").exit_code == 8
    empty = tmp_path / "prompts.txt"
    empty.write_text("")
    refused = boothctl("evaluate", "mdl_1", "--prompts", empty)
    assert (refused.exit_code, "has no prompt in it" in refused.stderr) == (6, True)


def test_evaluations_are_listed_cancelled_and_deleted(service: ScriptedService) -> None:
    service.on("GET", "/v1/evaluations", EvaluationPage(evaluations=[DONE]))
    listed = boothctl("evaluations").stdout.splitlines()
    assert listed[1].split()[:4] == ["eval_1", "succeeded", "40/40", "mdl_1"]
    assert json.loads(boothctl("evaluations", "--json").stdout)[0]["id"] == "eval_1"
    service.on("POST", f"{ONE}/cancel", record(RunState.RUNNING, cancel_requested=True))
    assert boothctl("evaluations", "cancel", "eval_1").stdout == "eval_1\n"
    service.on("DELETE", ONE, 204)
    assert boothctl("evaluations", "rm", "eval_1").stdout == "eval_1\n"
    assert len(service.asked("DELETE", ONE)) == 1
