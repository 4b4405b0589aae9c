"""Generations and boothctl's commands for them, against a real HTTP server with scripted answers."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scripted_service import MODEL, NOW, ScriptedService, problem, sent_json
from typer.testing import CliRunner, Result

from booth import (
    Client,
    Generation,
    JobCancelledError,
    JobFailedError,
    NotFoundError,
    TransferError,
    ValidationError,
    WaitTimeoutError,
)
from booth.cli import app
from booth.contract.generations import (
    GenerationPage,
    GenerationPicture,
    GenerationPicturePage,
    GenerationRecord,
    GenerationSettings,
)
from booth.contract.jobs import JobFailure
from booth.contract.states import RunState

MANY = "/v1/models/mdl_1/generations"
ONE = "/v1/generations/gen_1"
SETTINGS = GenerationSettings(
    seed=7, num_images=2, guidance_scale=4.0, num_inference_steps=20, width=64, height=64, scheduler="ddim"
)


def record(status: RunState = RunState.QUEUED, done: int = 0, **changes: object) -> GenerationRecord:
    found = GenerationRecord(
        id="gen_1",
        model_id="mdl_1",
        base_model="tiny",
        status=status,
        status_detail="Waiting.",
        prompts=2,
        done=done,
        total=4,
        settings=SETTINGS,
        created_at=NOW,
    )
    return found.model_copy(update=changes)


DONE = record(RunState.SUCCEEDED, done=4, status_detail="All pictures are there.")


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (index, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def entry(service: ScriptedService, index: int) -> GenerationPicture:
    service.on("GET", f"/s3/{index}", png(index))
    return GenerationPicture(
        index=index,
        prompt=f"a sks dog, {index // 2}",
        seed=7 + index % 2,
        batch_size=4,
        bytes=len(png(index)),
        sha256=hashlib.sha256(png(index)).hexdigest(),
        url=f"{service.url}/s3/{index}?sig=x",
    )


def pages(service: ScriptedService) -> list[GenerationPicturePage]:
    """Of two pictures each; the last one is answered again and again."""
    return [
        GenerationPicturePage(pictures=[entry(service, 0), entry(service, 1)], next_after=1),
        GenerationPicturePage(pictures=[entry(service, 2), entry(service, 3)]),
    ]


@pytest.fixture(autouse=True)
def client(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    monkeypatch.setattr("booth.transport.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("booth.generations.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("booth.runs.POLL_PAUSE_S", 0.0)
    service.on("GET", "/v1/models/mdl_1", MODEL)
    service.on("POST", MANY, record())
    service.on("GET", ONE, DONE)
    service.on("GET", f"{ONE}/pictures", *pages(service))
    with Client() as found:
        yield found


def begun(client: Client) -> Generation:
    return client.models.get("mdl_1").generate_many(["a sks dog, 0", "a sks dog, 1"], 2, seed=7, scheduler="ddim")


def test_what_was_asked_is_sent_once_under_a_key(client: Client, service: ScriptedService) -> None:
    generation = begun(client)
    assert (generation.id, generation.status, generation.total, generation.done) == ("gen_1", "queued", 4, 0)
    (call,) = service.asked("POST", MANY)
    assert call.headers["Idempotency-Key"]
    sent = {name: value for name, value in sent_json(call).items() if value is not None}
    assert sent == {
        "prompts": ["a sks dog, 0", "a sks dog, 1"],
        "num_images": 2,
        "negative_prompt": "",
        "seed": 7,
        "scheduler": "ddim",
    }
    service.on("POST", "/v1/base-models/tiny/generations", record(model_id=None))
    assert client.generate_many(["a dog"], base_model="tiny", idempotency_key="mine").model_id is None
    (call,) = service.asked("POST", "/v1/base-models/tiny/generations")
    assert call.headers["Idempotency-Key"] == "mine"


@pytest.mark.parametrize(
    ("prompts", "changes", "field", "said"),
    [
        ([], {}, "prompts", "at least 1"),
        (["a dog", " "], {}, "prompts.1", "blank"),
        (["a\0dog"], {}, "prompts.0", "control characters"),
        (["a dog"] * 2, {"num_images": 50_001}, "num_images", "100002 pictures"),
        (["a dog"], {"seed": -1}, "seed", "greater"),
        (["x" * 1000] * 17_000, {}, "prompts", "bytes as JSON"),
    ],
)
def test_bad_input_is_named_before_anything_is_sent(
    client: Client, service: ScriptedService, prompts: list[str], changes: dict[str, int], field: str, said: str
) -> None:
    model = client.models.get("mdl_1")
    with pytest.raises(ValidationError) as refused:
        model.generate_many(prompts, **changes)
    (found,) = refused.value.problems
    assert (found.field, said in found.message, found.remedy != "") == (field, True, True)
    assert service.asked("POST", MANY) == []


def test_waiting_shows_the_way_and_bears_a_server_that_is_away(client: Client, service: ScriptedService) -> None:
    service.on("GET", ONE, record(RunState.RUNNING, 2), *[503] * 3, DONE)
    seen: list[int] = []
    generation = begun(client)
    assert generation.wait(on_progress=lambda each: seen.append(each.done)) is generation
    assert (seen[0], seen[-1]) == (2, 4)


def test_other_ends_are_raised(client: Client, service: ScriptedService) -> None:
    generation = begun(client)
    error = JobFailure(reason="model_deleted", message="The model was deleted meanwhile.", remedy="It stays.")
    service.on("GET", ONE, record(RunState.FAILED, error=error))
    with pytest.raises(JobFailedError, match=r"gen_1 failed: The model was deleted meanwhile\. It stays\.") as raised:
        generation.wait()
    assert raised.value.job is generation
    service.on("GET", ONE, record(RunState.CANCELLED))
    with pytest.raises(JobCancelledError):
        generation.wait()
    service.on("GET", ONE, record(RunState.RUNNING))
    with pytest.raises(WaitTimeoutError):
        generation.wait(timeout_s=0)
    service.on("GET", ONE, problem("not_found", 404))
    with pytest.raises(NotFoundError):
        generation.wait()


def test_pictures_come_page_by_page_and_are_fetched_when_looked_at(client: Client, service: ScriptedService) -> None:
    generation = begun(client)
    found = generation.pictures()
    first = next(found)
    assert [call.query["after"] for call in service.asked("GET", f"{ONE}/pictures")] == ["-1"]
    assert service.asked("GET", "/s3/0") == []
    assert first.image.getpixel((0, 0)) == (0, 0, 0)
    assert [each.seed for each in found] == [8, 7, 8]
    assert [call.query["after"] for call in service.asked("GET", f"{ONE}/pictures")] == ["-1", "1"]


def test_a_link_that_ran_out_is_asked_for_anew_and_other_bytes_are_refused(
    client: Client, service: ScriptedService, tmp_path: Path
) -> None:
    pictures = list(begun(client).pictures())
    service.on("GET", "/s3/2", 403, png(2))
    service.on("GET", f"{ONE}/pictures", GenerationPicturePage(pictures=[pictures[2]._entry]))
    assert pictures[2].save(tmp_path / "a.png").read_bytes() == png(2)
    assert service.asked("GET", f"{ONE}/pictures")[-1].query == {"after": "1", "limit": "1"}
    service.on("GET", "/s3/3", png(0))
    with pytest.raises(TransferError, match="Picture 3 arrived with other bytes"):
        _ = pictures[3].png


def test_a_download_is_whole_and_fetches_nothing_twice(
    client: Client, service: ScriptedService, tmp_path: Path
) -> None:
    generation = begun(client)
    service.on("GET", "/s3/3", 403)
    with pytest.raises(TransferError):
        generation.download(tmp_path / "out")
    assert not (tmp_path / "out" / "prompts.jsonl").exists()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        "00000-7.png",
        "00001-8.png",
        "00002-7.png",
    ]
    (tmp_path / "out" / "00001-8.png").write_bytes(b"cut")
    service.on("GET", f"{ONE}/pictures", *pages(service))
    saved: list[Path] = []
    folder = generation.download(tmp_path / "out", saved.append)
    assert [path.name for path in saved] == ["00000-7.png", "00001-8.png", "00002-7.png", "00003-8.png"]
    assert [path.read_bytes() for path in saved] == [png(index) for index in range(4)]
    assert [len(service.asked("GET", f"/s3/{index}")) for index in range(3)] == [1, 2, 1]
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert lines[3] == {
        "file": "00003-8.png",
        "prompt": "a sks dog, 1",
        "seed": 8,
        "sha256": hashlib.sha256(png(3)).hexdigest(),
    }
    assert sorted(path.name for path in folder.iterdir()) == [*(path.name for path in saved), "prompts.jsonl"]


def test_generations_are_listed_cancelled_and_deleted(client: Client, service: ScriptedService) -> None:
    listed = [
        GenerationPage(generations=[record()], next_after="gen_1"),
        GenerationPage(generations=[record(id="gen_0")]),
    ]
    service.on("GET", "/v1/generations", *listed)
    assert [each.id for each in client.generations.list()] == ["gen_1", "gen_0"]
    service.on("POST", f"{ONE}/cancel", record(RunState.RUNNING, cancel_requested=True))
    generation = client.generations.get("gen_1")
    assert generation.cancel().record.cancel_requested
    service.on("DELETE", ONE, b"")
    generation.delete()
    assert len(service.asked("DELETE", ONE)) == 1


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa sks dog, 0\r\n\n  a sks dog, 1  \n\n".encode())
    return path


def test_boothctl_draws_a_file_of_prompts(service: ScriptedService, prompts: Path, tmp_path: Path) -> None:
    service.on("GET", ONE, record(RunState.RUNNING, 2, status_detail="Drawing.", eta_s=61), DONE)
    out = tmp_path / "out"
    result = run("generate-many", "mdl_1", "--prompts", prompts, "-n", 2, "--seed", 7, "-o", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        str(out / name) for name in ("00000-7.png", "00001-8.png", "00002-7.png", "00003-8.png")
    ]
    assert sent_json(service.asked("POST", MANY)[0])["prompts"] == ["a sks dog, 0", "a sks dog, 1"]
    assert "1 blank line(s) are left out" in result.stderr
    assert "running: Drawing. 1 min 1 s left" in result.stderr


def test_boothctl_detaches_and_takes_up_again(service: ScriptedService, prompts: Path, tmp_path: Path) -> None:
    assert run("generate-many", "mdl_1", "--prompts", prompts, "-d").stdout == "gen_1\n"
    result = run("generations", "download", "gen_1", "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["status"] == "succeeded"
    assert (tmp_path / "out" / "00003-8.png").read_bytes() == png(3)


@pytest.mark.parametrize(("status", "code"), [(RunState.FAILED, 3), (RunState.CANCELLED, 8)])
def test_what_was_drawn_until_the_end_is_fetched(
    service: ScriptedService, tmp_path: Path, status: RunState, code: int
) -> None:
    service.on("GET", ONE, record(status, 2))
    service.on("GET", f"{ONE}/pictures", GenerationPicturePage(pictures=[entry(service, 0), entry(service, 1)]))
    result = run("generations", "download", "gen_1", "-o", tmp_path)
    assert result.exit_code == code
    assert result.stdout.splitlines() == [str(tmp_path / "00000-7.png"), str(tmp_path / "00001-8.png")]


def test_ctrl_c_leaves_a_generation_alone(
    service: ScriptedService, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Generation, "wait", interrupted)
    result = run("generate-many", "mdl_1", "--prompts", prompts)
    assert result.exit_code == 130
    assert "boothctl generations download gen_1" in result.stderr
    assert service.asked("POST", f"{ONE}/cancel") == []


@pytest.mark.parametrize(
    ("content", "said"), [(b" \n\n", "It holds no prompt."), (b"a\xff", "It is not UTF-8"), (b"a\0dog", "prompts.0")]
)
def test_a_file_without_usable_prompts_is_refused(
    service: ScriptedService, prompts: Path, content: bytes, said: str
) -> None:
    prompts.write_bytes(content)
    result = run("generate-many", "mdl_1", "--prompts", prompts)
    assert (result.exit_code, said in result.stderr) == (6, True)
    assert service.asked("POST", MANY) == []


def test_boothctl_lists_cancels_and_deletes(service: ScriptedService) -> None:
    service.on("GET", "/v1/generations", GenerationPage(generations=[record(RunState.RUNNING, 2)]))
    assert run("generations").stdout.splitlines()[1].split()[:4] == ["gen_1", "running", "2/4", "mdl_1"]
    assert json.loads(run("generations", "--json").stdout)[0]["id"] == "gen_1"
    service.on("POST", f"{ONE}/cancel", record(cancel_requested=True))
    assert run("generations", "cancel", "gen_1").stdout == "gen_1\n"
    service.on("DELETE", ONE, b"")
    assert run("generations", "rm", "gen_1").stdout == "gen_1\n"
    service.on("DELETE", ONE, problem("not_found", 404))
    assert run("generations", "rm", "gen_1").exit_code == 5
