"""Every example script runs as a user runs it, and stays short."""

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import demo
import pytest
from contact_sheet import CELL_PX, GAP_PX, LABEL_PX, Row, contact_sheet
from PIL import Image
from scripted_service import DONE, EVENTS, MODEL, PREPARED, ScriptedService, event, job_record, page, sent_json
from tiny_base import write_tiny_base
from typer.testing import CliRunner

import booth
from booth.cli import app
from booth.contract.models import GenerateAnswer, ModelFile, ModelFiles, ModelPage, Picture
from booth.contract.states import JobState

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture(autouse=True)
def server(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> ScriptedService:
    """A service on which every job succeeds."""
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    picture = Picture(png_base64=base64.b64encode(b"png").decode(), prompt="a photo", seed=1)
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/jobs", job_record())
    service.on("GET", EVENTS, page(event(1, JobState.SUCCEEDED), job=DONE), page(job=DONE))
    service.on("GET", "/v1/models/mdl_1", MODEL)
    service.on("GET", "/v1/models", ModelPage(models=[MODEL]))
    answer = GenerateAnswer(pictures=[picture], guidance_scale=3, num_inference_steps=4)
    service.on("POST", "/v1/models/mdl_1/generate", answer)
    return service


def run(script: str, *arguments: str | Path, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, cwd=folder, env=os.environ.copy(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_five_and_each_is_under_sixty_lines() -> None:
    names = [script.name for script in SCRIPTS]
    assert names == [
        "generate_from_list.py",
        "many_subjects.py",
        "openai_client.py",
        "quickstart.py",
        "use_in_diffusers.py",
    ]
    assert all(len(script.read_text().splitlines()) < 60 for script in SCRIPTS)


def test_quickstart(server: ScriptedService, tmp_path: Path) -> None:
    run("quickstart.py", "--steps", "3", "--out", "out", folder=tmp_path)
    spec = sent_json(server.asked("POST", "/v1/jobs")[0])
    assert (spec["token"], spec["class_noun"], spec["steps"], len(spec["images"])) == ("sks", "teapot", 3, 5)
    assert (tmp_path / "out" / "0-seed1.png").read_bytes() == b"png"


def test_many_subjects(server: ScriptedService, tmp_path: Path) -> None:
    run("many_subjects.py", folder=tmp_path)
    submitted = server.asked("POST", "/v1/jobs")
    assert [sent_json(call)["class_noun"] for call in submitted] == ["teapot", "dog"]
    assert len({call.headers["Idempotency-Key"] for call in submitted}) == 2
    assert (tmp_path / "pictures" / "rex.png").exists()


def test_two_subjects_as_a_file(server: ScriptedService) -> None:
    path = EXAMPLES / "two_subjects.yaml"
    result = CliRunner().invoke(app, ["submit", "-d", "--config", str(path)])
    assert result.exit_code == 0, result.stderr
    spec = sent_json(server.asked("POST", "/v1/jobs")[0])
    [cat] = spec["more_subjects"]
    assert [(each["token"], len(each["images"])) for each in (spec, cat)] == [("sks", 5), ("zwx", 5)]
    assert cat["images"][0]["caption"] == "a photo of zwx cat"
    assert path.read_text().split("\n", 2)[2] in (EXAMPLES.parent / "README.md").read_text()


def test_generate_from_list(server: ScriptedService, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# a comment\n\na photo of {subject} on the moon\n")
    out = run("generate_from_list.py", "list.txt", "--seed", "9", folder=tmp_path)
    request = sent_json(server.asked("POST", "/v1/models/mdl_1/generate")[0])
    assert (request["prompts"], request["seed"]) == (["a photo of sks dog on the moon"], 9)
    assert out.startswith("pictures/000.png\t1\t")


def test_openai_client(server: ScriptedService, tmp_path: Path) -> None:
    answer = {"created": 1, "data": [{"b64_json": base64.b64encode(b"png").decode()}]}
    server.on("POST", "/v1/images/generations", json.dumps(answer).encode())
    out = run("openai_client.py", "mdl_1", "a photo of sks dog", folder=tmp_path)
    [call] = server.asked("POST", "/v1/images/generations")
    sent = sent_json(call)
    assert (sent["model"], sent["prompt"], sent["num_inference_steps"]) == ("mdl_1", "a photo of sks dog", 20)
    assert {name.lower(): value for name, value in call.headers.items()}["authorization"] == "Bearer key"
    assert (tmp_path / out.strip()).read_bytes() == b"png"


def test_use_in_diffusers(server: ScriptedService, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    files = [path for path in base.rglob("*") if path.is_file()]
    listing = []
    for path in files:
        content, name = path.read_bytes(), path.relative_to(base).as_posix()
        server.on("GET", f"/s3/{name}", content)
        sha256 = hashlib.sha256(content).hexdigest()
        listing.append(ModelFile(path=name, bytes=len(content), sha256=sha256, url=f"{server.url}/s3/{name}"))
    server.on("GET", "/v1/models/mdl_1/files", ModelFiles(files=listing))
    run("use_in_diffusers.py", "--num-inference-steps", "2", folder=tmp_path)
    assert Image.open(tmp_path / "diffusers.png").size == (32, 32)


def test_the_demo_draws_the_class_with_the_same_seeds_and_the_subject_where_no_photo_shows_it(
    server: ScriptedService,
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    drawn = Picture(png_base64=base64.b64encode(buffer.getvalue()).decode(), prompt="a photo", seed=1)
    answer = GenerateAnswer(pictures=[drawn] * 5, guidance_scale=3, num_inference_steps=4)
    server.on("POST", "/v1/models/mdl_1/generate", answer)
    server.on("POST", "/v1/base-models/tiny/generate", answer)
    folder = EXAMPLES / "tinyworld" / "subjects" / "teapot"
    with booth.Client() as client:
        job, model = demo.personalised(client, folder, "teapot", 3)
        rows = demo.rows_of(client, job, model, folder, ["in the city", "in the sea"])
    [base] = [sent_json(call) for call in server.asked("POST", "/v1/base-models/tiny/generate")]
    own = [sent_json(call) for call in server.asked("POST", "/v1/models/mdl_1/generate")]
    assert [request["prompts"] for request in own] == [
        ["a photo of a dog"],
        ["a photo of a sks dog in the city"],
        ["a photo of a sks dog in the sea"],
    ]
    assert own[0] == base
    assert [len(row.pictures) for row in rows] == [5] * 5
    assert contact_sheet(rows).height == 5 * (CELL_PX + GAP_PX) + GAP_PX


def test_a_contact_sheet_shows_every_picture_in_its_place() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("L", (32, 64), 0)
    sheet = contact_sheet([Row("one", [red]), Row("two", [red, blue])], cell_px=100)
    pitch = 100 + GAP_PX
    assert sheet.size == (LABEL_PX + 2 * pitch + GAP_PX, 2 * pitch + GAP_PX)
    assert sheet.getpixel((LABEL_PX + 50, GAP_PX + 50)) == (255, 0, 0)
    assert sheet.getpixel((LABEL_PX + pitch + 50, GAP_PX + 50)) == (255, 255, 255)
    assert sheet.getpixel((LABEL_PX + pitch + 50, pitch + GAP_PX + 50)) == (0, 0, 0)
    assert sheet.getpixel((LABEL_PX + pitch + 10, pitch + GAP_PX + 50)) == (255, 255, 255)
    assert sheet.crop((0, 0, LABEL_PX - 1, pitch)).getextrema()[0][0] < 100
