"""Sweeps and benchmarks planned, submitted and followed, against a real HTTP server with scripted answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from dreambooth_files import write as write_files
from PIL import Image
from scripted_service import NOW, PARAMS, PREPARED, ScriptedService, job_record, problem, sent_json
from typer.testing import CliRunner, Result

import booth
from booth import Client, ImageValidationError, JobCancelledError, Subject, ValidationError, cost, sweep
from booth.cli import app
from booth.contract import limits
from booth.contract.evaluation import Report, ReportFile, ReportFiles, ReportTable
from booth.contract.groups import CellLabels, CellPage, CellRecord, GroupPage, GroupRecord, GroupSettings
from booth.contract.jobs import JobPage
from booth.contract.models import BaseModelPage, BaseModelRecord, Recipe
from booth.contract.scores import Score
from booth.contract.states import JobState, RunState

GROUP = "/v1/groups/grp_1"
RECIPE = Recipe(
    source="a test",
    steps=400,
    learning_rate=1e-6,
    text_encoder_learning_rate=1e-6,
    num_class_images=100,
    resolution=64,
    train_batch_size=1,
    guidance_scale=3.0,
    num_inference_steps=20,
    class_guidance_scale=1.0,
    class_num_inference_steps=20,
)
BASES = BaseModelPage(
    base_models=[
        BaseModelRecord(name="sd15", family="stable-diffusion", is_default=True, recipe=RECIPE),
        BaseModelRecord(
            name="toy",
            family="stable-diffusion",
            is_default=False,
            recipe=RECIPE.model_copy(update={"prompt_set": "tinyworld"}),
        ),
    ]
)


def record(status: RunState = RunState.QUEUED, done: int = 0, **changes: object) -> GroupRecord:
    found = GroupRecord(
        id="grp_1",
        status=status,
        status_detail="Waiting.",
        settings=GroupSettings(kind="sweep", name="rates", baseline="a"),
        base_model="sd15",
        done=done,
        total=2,
        created_at=NOW,
    )
    return found.model_copy(update=changes)


DONE = record(RunState.SUCCEEDED, 2, states={"succeeded": 1, "failed": 1}, status_detail="1 of 2 cells succeeded.")
CELLS = CellPage(
    cells=[
        CellRecord(
            job_id="job_1",
            model_id="mdl_1",
            labels=CellLabels(subject="rex", arm="a", values={"steps": "2"}),
            status=JobState.SUCCEEDED,
            scores=[Score(step=0, suite="tiny", dino=0.25), Score(step=2, suite="tiny", dino=0.5)],
        ),
        CellRecord(job_id="job_2", labels=CellLabels(subject="rex", arm="b"), status=JobState.FAILED),
    ]
)
TABLES = [ReportTable(title="By subject", head=["Subject", "DINO"], rows=[["rex", "0.500"]])]


@pytest.fixture
def rex(tmp_path: Path) -> Path:
    """A folder of three photos."""
    return photos(tmp_path / "rex", 3)


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (64, 48), (number, len(folder.name), 7)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def client(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    monkeypatch.setattr("booth.runs.POLL_PAUSE_S", 0.0)
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/groups", record())
    service.on("GET", GROUP, DONE)
    service.on("GET", f"{GROUP}/cells", CELLS)
    service.on("GET", "/v1/base-models", BASES)
    service.on("GET", "/v1/jobs", JobPage(jobs=[]))
    report = Report(title="Sweep rates", rows=[], tables=TABLES).model_dump_json().encode()
    files = {"report.json": report, "report.html": b"<html>"}
    for name, body in files.items():
        service.on("GET", f"/s3/{name}", body)
    listed = [ReportFile(name=name, bytes=len(body), url=f"{service.url}/s3/{name}") for name, body in files.items()]
    service.on("GET", f"{GROUP}/report", ReportFiles(files=listed))
    with Client() as found:
        yield found


def sent(service: ScriptedService) -> dict:
    return json.loads(service.asked("POST", "/v1/groups")[-1].body)


def test_every_combination_is_an_arm_of_every_subject(client: Client, service: ScriptedService, rex: Path) -> None:
    tom = photos(rex.with_name("tom"), 2)
    client.sweep(
        {"rex": Subject(rex, "sks", "dog"), "tom": Subject(tom, "sks", "cat")},
        vary={"learning_rate": [1e-6, 5e-6], "steps": [200, 400]},
        dials={"train_batch_size": 2, "snr_gamma": 5, "options": {"lr_schedule": "cosine"}},
        scoring=booth.ScoringOptions(steps=[0, 200, 400]),
        seeds=[0, 7],
    )
    body = sent(service)
    assert len(body["cells"]) == 2 * 4 * 2
    arms = list(dict.fromkeys(cell["arm"] for cell in body["cells"]))
    assert arms == [f"learning_rate={rate}, steps={steps}" for rate in ("1e-06", "5e-06") for steps in ("200", "400")]
    assert body["baseline"] == arms[0]
    cell = body["cells"][1]
    assert (cell["subject"], cell["seed"], cell["job"]["seed"]) == ("rex", 7, 7)
    assert cell["values"] == {"learning_rate": "1e-06", "steps": "200"}
    job = cell["job"]
    assert (job["steps"], job["train_batch_size"], job["options"]["snr_gamma"]) == (200, 2, 5)
    assert job["options"]["lr_schedule"] == "cosine"
    assert [cell["job"]["options"]["scoring"]["steps"] for cell in body["cells"][:3]] == [
        [0, 200],
        [0, 200],
        [0, 200, 400],
    ], "steps beyond a cell's last one mean its last one"
    assert len(service.asked("POST", "/v1/jobs/prepare")) == 2, "photos are prepared once for each subject"


def test_arms_change_nouns_photos_and_options(client: Client, service: ScriptedService, rex: Path) -> None:
    others = photos(rex.with_name("others"), 2)
    client.sweep(
        {"rex": Subject(rex, "sks", "dog")},
        {
            "correct": {},
            "wrong": {"class_noun": "can"},
            "few": {"num_photos": 2},
            "own": lambda subject: {"images": others, "options": {"instance_prompt": f"a {subject}"}},
        },
        scoring=booth.ScoringOptions(),
        baseline="wrong",
    )
    body = sent(service)
    jobs = {cell["arm"]: cell["job"] for cell in body["cells"]}
    assert (body["baseline"], jobs["wrong"]["class_noun"]) == ("wrong", "can")
    assert jobs["wrong"]["options"]["scoring"]["noun"] == "dog", "scores are of the subject's own class"
    assert jobs["correct"]["options"]["scoring"]["noun"] is None
    assert held_out(jobs["correct"]) == [False, False, False]
    assert held_out(jobs["few"]) == [False, False, True], "all arms are scored against the same photos"
    assert held_out(jobs["own"]) == [False, False]
    assert jobs["own"]["options"]["instance_prompt"] == "a rex"
    assert len(service.asked("POST", "/v1/jobs/prepare")) == 3


def held_out(job: dict) -> list[bool]:
    return [photo.get("held_out", False) for photo in job["images"]]


def test_photos_beyond_the_count_are_left_out_where_nothing_is_scored(
    client: Client, service: ScriptedService, rex: Path
) -> None:
    client.sweep(Subject(rex, "sks", "dog"), vary={"num_photos": [1, 2]})
    assert [held_out(cell["job"]) for cell in sent(service)["cells"]] == [[False], [False, False]]


def test_one_photo_is_read_without_training_beside_arms_that_train(
    client: Client, service: ScriptedService, rex: Path
) -> None:
    methods = ["dreambooth", "textual_inversion", "ip_adapter"]
    client.sweep(Subject(rex, "sks", "dog"), vary={"method": methods}, scoring=booth.ScoringOptions())
    jobs = [cell["job"] for cell in sent(service)["cells"]]
    assert [held_out(job).count(False) for job in jobs] == [3, 3, 1]
    assert [job.get("token") for job in jobs] == ["sks", "sks", None]


def test_the_same_call_has_the_same_key_and_another_has_another(
    client: Client, service: ScriptedService, rex: Path
) -> None:
    for rates in ([1e-6, 2e-6], [1e-6, 2e-6], [1e-6, 3e-6]):
        client.sweep(Subject(rex, "sks", "dog"), vary={"learning_rate": rates})
    client.sweep(Subject(rex, "sks", "dog"), vary={"learning_rate": [1e-6]}, idempotency_key="mine")
    keys = [call.headers["Idempotency-Key"] for call in service.asked("POST", "/v1/groups")]
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == "mine"


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"vary": {"learning_rat": [1]}}, "vary.learning_rat", "Did you mean learning_rate?"),
        ({"vary": {"zzzz": [1]}}, "vary.zzzz", "Known are class_noun, token"),
        ({"arms": {"a": {"nonsense_": 1}}}, "arms.a.nonsense_", "Known are"),
        ({"dials": {"stepz": 1}}, "dials.stepz", "Did you mean steps?"),
        ({"vary": {"steps": []}}, "vary.steps", "a list of one value or more"),
        ({"vary": {"steps": 3}}, "vary.steps", "a list of one value or more"),
        ({"vary": {"steps": ["many"]}}, "rex, steps=many: steps", "whole number"),
        ({"vary": {"seed": [1, 2]}}, "vary.seed", "Known are"),
        ({"subjects": {}}, "subjects", "at least one subject"),
        ({"seeds": []}, "subjects", "at least one seed"),
        ({"arms": {}}, None, ""),
        ({"vary": {"steps": range(1, limits.MAX_CELLS + 2)}}, "vary", "Vary fewer"),
        ({"arms": {"a": {"steps": 3}, "b": {"steps": 3}}}, "arms.b", "Leave one"),
        ({"vary": {"steps": [3, 3]}}, "arms.steps=3", "Leave one"),
        ({"arms": {"a": {}, "b": {"steps": 3}}, "baseline": "c"}, "baseline", "Name one of: a; b."),
        ({"vary": {"num_photos": [4]}}, "num_photos", "1 to 3"),
        ({"name": " "}, "name", "at least 1 char"),
        ({"cells_at_once": 0}, "cells_at_once", "1 or more"),
    ],
)
def test_bad_input_is_named_before_anything_is_sent(
    client: Client, service: ScriptedService, rex: Path, given: dict, field: str | None, said: str
) -> None:
    asked = {"subjects": {"rex": Subject(rex, "sks", "dog")}, **given}
    if field is None:
        client.sweep(**asked)
        return
    with pytest.raises(ValidationError) as refused:
        client.sweep(**asked)
    found = {each.field: each.remedy for each in refused.value.problems}
    assert field in found, found
    assert said in found[field]
    assert service.calls == []


def test_a_subject_with_one_photo_cannot_be_scored_and_bad_photos_are_all_named(client: Client, rex: Path) -> None:
    one = photos(rex.with_name("one"), 1)
    with pytest.raises(ValidationError, match="one photo"):
        client.sweep({"a": Subject(one, "sks", "dog")}, scoring=booth.ScoringOptions())
    (rex / "0.png").write_bytes(b"no picture")
    with pytest.raises(ImageValidationError) as refused:
        client.sweep({"rex": Subject(rex, "sks", "dog"), "none": Subject(rex / "nothing", "sks", "dog")})
    assert len(refused.value.problems) == 2


def test_a_group_is_followed_to_its_cells_and_report(client: Client, service: ScriptedService, rex: Path) -> None:
    service.on("GET", GROUP, record(RunState.RUNNING, 1), 503, DONE)
    seen: list[int] = []
    group = client.sweep(Subject(rex, "sks", "dog")).wait(on_progress=lambda each: seen.append(each.done))
    assert (seen, group.states) == ([1, 2], {"succeeded": 1, "failed": 1})
    first, second = group.cells()
    assert [score.dino for score in first.scores()] == [0.25, 0.5]
    assert (first.labels.arm, second.status, second.scores()) == ("a", "failed", [])
    service.on("GET", "/v1/jobs/job_1", job_record())
    assert first.job.id == "job_1"
    assert group.report().data.tables == TABLES
    service.on("POST", f"{GROUP}/cancel", record(RunState.CANCELLED))
    service.on("GET", GROUP, record(RunState.CANCELLED))
    with pytest.raises(JobCancelledError):
        group.cancel().wait()
    service.on("GET", "/v1/groups", GroupPage(groups=[record()]))
    assert [each.id for each in client.groups.list()] == ["grp_1"]


def test_a_benchmark_is_a_job_for_each_subject_with_the_folders_prompts(
    client: Client, service: ScriptedService, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "data", {"rex": 3, "mug": 2, "plushie": 2})
    client.benchmark(folder, methods=["dreambooth", "textual_inversion"], token="sks")
    body = sent(service)
    assert body["kind"] == "benchmark"
    subjects = list(dict.fromkeys(cell["subject"] for cell in body["cells"]))
    assert len(body["cells"]) == 2 * len(subjects)
    scoring = body["cells"][0]["job"]["options"]["scoring"]
    assert (scoring["steps"], scoring["num_images"]) == ([0, -1], 4)
    assert all("{0}" in prompt for prompt in scoring["prompts"])
    assert [cell["job"]["method"] for cell in body["cells"][:2]] == ["dreambooth", "textual_inversion"]
    client.benchmark(folder, subjects[:1], base_model="toy", num_prompts=3)
    (cell,) = sent(service)["cells"]
    assert cell["job"]["options"]["scoring"]["prompts"][0] == "a photo of a {0} {1} in the jungle", "the recipe's set"
    assert len(cell["job"]["options"]["scoring"]["prompts"]) == 3
    with pytest.raises(ValidationError, match="no prompt set"):
        client.benchmark(folder, prompt_set="none")
    with pytest.raises(booth.NotFoundError, match="sd15, toy"):
        client.benchmark(folder, base_model="none")


def test_the_cost_counts_cells_steps_pictures_and_classes_once(rex: Path) -> None:
    planned = sweep.plan(
        "sweep",
        Subject(rex, "sks", "dog"),
        vary={"prior_loss_weight": [0, 1], "steps": [100, 300]},
        scoring=booth.ScoringOptions(steps=[0, -1], prompts=["a {0} {1}"] * 2, num_images=3, num_class_images=4),
    )
    found = cost.of_group(planned.spec, BASES.base_models, [])
    assert (found.cells, found.steps, found.pictures, found.class_images) == (4, 800, 4 * 2 * (2 * 3 + 4), 100)
    assert found.device_s is None
    assert "not known" in str(found)
    params = PARAMS.model_copy(update={"base_model": "sd15", "steps": 10})
    later = NOW.replace(minute=NOW.minute + 1)
    ran = job_record(JobState.SUCCEEDED, params=params, started_at=NOW, finished_at=later)
    assert cost.of_group(planned.spec, BASES.base_models, [ran]).device_s == 800 * 6


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_boothctl_sweep_says_the_cost_follows_and_shows_tables(service: ScriptedService, rex: Path) -> None:
    done = run(
        "sweep", rex, "--token", "sks", "--class-noun", "dog", "--vary", "learning_rate=1e-6,5e-6",
        "--vary", "prior_loss_weight=0,1", "--set", "steps=400", "--set", "train_text_encoder=false",
        "--score-steps", "0,200,400", "--images", "2", "-o", rex / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "4 jobs, 1,600 optimizer steps" in done.stderr
    assert "By subject" in done.stdout
    assert "rex      0.500" in done.stdout
    assert (rex / "out" / "report.html").read_bytes() == b"<html>"
    body = sent(service)
    assert body["cells"][0]["job"]["train_text_encoder"] is False
    assert body["cells"][3]["arm"] == "learning_rate=5e-06, prior_loss_weight=1"
    assert body["cells"][0]["job"]["options"]["scoring"]["steps"] == [0, 200, 400]


def test_boothctl_sweep_takes_a_file(service: ScriptedService, rex: Path) -> None:
    tom = photos(rex.with_name("tom"), 2)
    file = rex.with_name("sweep.yaml")
    file.write_text(
        "subjects:\n  rex: {images: rex, token: sks, class_noun: dog}\n"
        "  tom: {images: [tom/0.png, tom/1.png], class_noun: cat}\n"
        "arms:\n  plain: {}\n  no prior: {prior_loss_weight: 0}\n"
        "scoring: {steps: [-1], num_images: 2}\nseeds: [1]\nname: prior\n"
    )
    done = run("sweep", file, "--detach")
    assert (done.exit_code, done.stdout) == (0, "grp_1\n"), done.stderr
    body = sent(service)
    assert [(cell["subject"], cell["arm"], cell["seed"]) for cell in body["cells"]] == [
        (subject, arm, 1) for subject in ("rex", "tom") for arm in ("plain", "no prior")
    ]
    assert body["name"] == "prior"
    assert len(body["cells"][2]["job"]["images"]) == 2
    assert tom.exists()
    file.write_text("subject: {}\narms: 3\n")
    refused = run("sweep", file)
    assert refused.exit_code == 6
    assert "Did you mean subjects?" in refused.stderr


def test_boothctl_benchmark_goes_on_with_a_group(service: ScriptedService, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "data", {"rex": 3, "mug": 2, "plushie": 2})
    done = run("benchmark", folder, "--base-model", "toy", "--prompts", 2, "-d", "--json")
    assert (done.exit_code, json.loads(done.stdout)["id"]) == (0, "grp_1"), done.stderr
    assert len(sent(service)["cells"][0]["job"]["options"]["scoring"]["prompts"]) == 2
    count = len(service.asked("POST", "/v1/groups"))
    assert run("benchmark", folder, "--group", "grp_1").exit_code == 0
    assert len(service.asked("POST", "/v1/groups")) == count, "nothing is asked anew"
    service.on("GET", GROUP, DONE.model_copy(update={"states": {"failed": 2}}))
    assert run("benchmark", folder, "--group", "grp_1").exit_code == 3, "not one cell has a model"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", "steps"], "dial=value"),
        (["--vary", "steps=1", "--score-steps", "x"], "whole numbers"),
        (["--seeds", "a"], "whole numbers"),
        (["--set", "=3"], "dial=value"),
    ],
)
def test_boothctl_sweep_refuses_what_it_cannot_read(rex: Path, words: list[str], said: str) -> None:
    done = run("sweep", rex, "--class", "dog", *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert run("sweep").exit_code == run("sweep", rex).exit_code == 2


def test_boothctl_groups_lists_shows_and_ends(service: ScriptedService, tmp_path: Path) -> None:
    service.on("GET", "/v1/groups", GroupPage(groups=[record(RunState.RUNNING, 1)]))
    assert "grp_1  running  1/2" in run("groups").stdout
    assert "1 failed, 1 succeeded" in run("groups", "get", "grp_1").stdout
    shown = run("groups", "cells", "grp_1").stdout
    assert "rex      a    0     succeeded  2     0.500" in shown
    service.on("POST", f"{GROUP}/cancel", record(RunState.CANCELLED))
    assert run("groups", "cancel", "grp_1").stdout == "grp_1\n"
    service.on("DELETE", GROUP, 204)
    assert run("groups", "rm", "grp_1").stdout == "grp_1\n"
    assert run("groups", "report", "grp_1", "-o", tmp_path / "r").exit_code == 0
    assert (tmp_path / "r" / "report.json").is_file()
    service.on("GET", f"{GROUP}/report", problem("conflict", 409, "It is running, and has no report."))
    assert run("groups", "report", "grp_1").exit_code == 1


def test_what_is_prepared_is_what_is_asked_for(client: Client, service: ScriptedService, rex: Path) -> None:
    client.sweep(Subject(rex, "sks", "dog"), vary={"steps": [3, 4]})
    (prepared,) = service.asked("POST", "/v1/jobs/prepare")
    assert sent_json(prepared)["images"] == sent(service)["cells"][0]["job"]["images"]
