"""Every way to steer pictures, and events while they are drawn, against a real HTTP server with scripted answers."""

import base64
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import photo_files
import pytest
from PIL import Image
from scripted_service import CUT, MODEL, ScriptedService, problem, sent_json
from typer.testing import CliRunner

from booth import APIConnectionError, BusyError, Client, DrawingProgress, Model, PromptEdit, UnavailableError
from booth import ValidationError as Refused
from booth.cli import app
from booth.contract import limits
from booth.contract.event_stream import encoded
from booth.contract.models import BaseModelPage, GenerateAnswer, GenerateEvent, Picture

GENERATE = "/v1/models/mdl_1/generate"


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(seed: int = 1, **more) -> Picture:
    return Picture(png_base64=in_base64(png()), prompt="a sks dog", seed=seed, batch_size=4, **more)


def answer(*pictures: Picture) -> GenerateAnswer:
    return GenerateAnswer(
        pictures=list(pictures), guidance_scale=7.5, num_inference_steps=3, width=96, height=64, scheduler="ddim"
    )


def stream(*events: GenerateEvent) -> bytes:
    return b"".join(map(encoded, events))


def step(number: int, *places: int, **more) -> GenerateEvent:
    return GenerateEvent(kind="step", step=number, total_steps=3, places=list(places), **more)


DRAWN = GenerateEvent(kind="picture", places=[0], picture=picture())
DONE = GenerateEvent(kind="done", answer=answer())


@pytest.fixture
def model(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    service.on("GET", "/v1/models/mdl_1", MODEL)
    service.on("POST", GENERATE, answer(picture()))
    with Client(service.url, "key") as client:
        client._transport.sleep = lambda _: None
        yield client.models.get("mdl_1")


def test_every_setting_is_sent_and_comes_back(model: Model, service: ScriptedService) -> None:
    edit = PromptEdit(source_prompt="a dog", mode="refine", words={"sks": 2})
    source = in_base64(png("blue"))
    service.on("POST", GENERATE, answer(picture(source_png_base64=source)))
    settings = {"width": 96, "height": 64, "scheduler": "ddim", "strength": 0.5, "preview_interval_steps": 2}
    [drawn] = model.generate("a sks dog", 1, 5, 7.5, 3, "blur", image=png_of(40), edit=edit, **settings)
    sent = sent_json(service.asked("POST", GENERATE)[0])
    assert {name: sent[name] for name in settings} == settings
    assert (sent["seed"], sent["guidance_scale"], sent["num_inference_steps"]) == (5, 7.5, 3)
    assert (sent["negative_prompt"], base64.b64decode(sent["image"])) == ("blur", png_of(40))
    assert PromptEdit(**sent["edit"]) == edit
    assert (drawn.width, drawn.height, drawn.scheduler, drawn.batch_size) == (96, 64, "ddim", 4)
    assert drawn.source is not None
    assert (drawn.source.prompt, drawn.source.png, drawn.source.source) == ("a dog", png("blue"), None)


def test_a_base_model_takes_the_same_settings(model: Model, service: ScriptedService) -> None:
    service.on("GET", "/v1/base-models", BaseModelPage(base_models=[]))
    service.on("POST", "/v1/base-models/tiny/generate", answer(picture()))
    with Client(service.url, "key") as client:
        [drawn] = client.generate("a dog", "tiny", width=96, scheduler="unipc", image=png_of(40), strength=1)
    sent = sent_json(service.asked("POST", "/v1/base-models/tiny/generate")[0])
    assert (sent["width"], sent["scheduler"], sent["strength"], drawn.source) == (96, "unipc", 1, None)


def png_of(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "green").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_to_start_from_may_be_what_a_photo_may_be(
    model: Model, service: ScriptedService, tmp_path: Path
) -> None:
    (tmp_path / "start.png").write_bytes(png_of(40))
    for given in (tmp_path / "start.png", str(tmp_path / "start.png"), png_of(40), Image.open(tmp_path / "start.png")):
        model.generate("x", image=given)
    starts = [base64.b64decode(sent_json(call)["image"]) for call in service.asked("POST", GENERATE)]
    assert [Image.open(io.BytesIO(start)).tobytes() for start in starts] == [
        Image.new("RGB", (40, 40), "green").tobytes()
    ] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (photo_files.bomb_png, "13000 x 13000"),
        (photo_files.text_named_jpg, "known format"),
        (lambda folder: folder / "none.png", "no such file"),
        (lambda folder: 5, "It is a int"),
        (lambda folder: png_of(64) + b"\0" * limits.MAX_INIT_IMAGE_BYTES, "8 MiB are the most"),
    ],
)
def test_a_bad_picture_to_start_from_is_named_before_anything_is_sent(
    model: Model, service: ScriptedService, tmp_path: Path, make, message: str
) -> None:
    with pytest.raises(Refused, match=message) as caught:
        model.generate("x", image=make(tmp_path))
    assert [found.field for found in caught.value.problems] == ["image"]
    assert service.asked("POST", GENERATE) == []


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"prompts": "a\x00b"}, "prompts.0"),
        ({"prompts": "x", "scheduler": "eulerr"}, "scheduler"),
        ({"prompts": "x", "width": 8192}, "width"),
        ({"prompts": "x", "strength": 2}, "strength"),
    ],
)
def test_bad_settings_are_named_before_anything_is_sent(
    model: Model, service: ScriptedService, settings: dict, field: str
) -> None:
    with pytest.raises(Refused) as caught:
        model.generate(**settings)
    assert [found.field for found in caught.value.problems] == [field]
    assert service.asked("POST", GENERATE) == []


def test_large_pictures_go_in_more_calls(model: Model, service: ScriptedService) -> None:
    model.generate(["a", "b", "c", "d", "e"], num_images=2, width=2048, height=2048)
    assert [len(sent_json(call)["prompts"]) for call in service.asked("POST", GENERATE)] == [4, 1]


def test_steps_are_told_as_they_come(model: Model, service: ScriptedService) -> None:
    previews = [in_base64(png("blue"))]
    service.on("POST", GENERATE, stream(step(1, 0), step(2, 0, previews=previews), step(3, 0), DRAWN, DONE))
    seen: list[DrawingProgress] = []
    assert len(model.generate("x", on_step=seen.append)) == 1
    assert [(at.step, at.total_steps, at.places, at.num_pictures) for at in seen] == [
        (1, 3, (0,), 1),
        (2, 3, (0,), 1),
        (3, 3, (0,), 1),
    ]
    assert seen[0].previews == []
    assert seen[1].previews[0].getpixel((0, 0)) == (0, 0, 255)


def test_places_count_on_over_calls(model: Model, service: ScriptedService) -> None:
    drawn = [GenerateEvent(kind="picture", places=[place], picture=picture(place)) for place in range(16)]
    service.on("POST", GENERATE, stream(step(1, 0, 15), *drawn, DONE), stream(step(1, 0), DRAWN, DONE))
    seen: list[DrawingProgress] = []
    assert len(model.generate(["x"] * 17, on_step=seen.append)) == 17
    assert [(at.places, at.num_pictures) for at in seen] == [((0, 15), 17), ((16,), 17)]


def test_pictures_of_events_are_those_of_an_answer(model: Model, service: ScriptedService) -> None:
    plain = model.generate("x")
    service.on("POST", GENERATE, stream(step(1, 0), DRAWN, DONE))
    assert model.generate("x", on_step=lambda at: None) == plain
    [_, call] = service.asked("POST", GENERATE)
    assert call.headers["Accept"] == "text/event-stream"
    assert call.headers["Authorization"] == "Bearer key"


def test_pictures_come_in_the_order_of_the_prompts(model: Model, service: ScriptedService) -> None:
    def drawn(place: int) -> GenerateEvent:
        return GenerateEvent(kind="picture", places=[place], picture=picture(place))

    service.on("POST", GENERATE, stream(drawn(2), drawn(0), drawn(1), DONE))
    assert [each.seed for each in model.generate("x", 3, on_step=lambda at: None)] == [0, 1, 2]


def test_a_refusal_among_the_events_is_raised(model: Model, service: ScriptedService) -> None:
    late = GenerateEvent(kind="refused", problem=problem("timeout", 504, "Not in time."))
    service.on("POST", GENERATE, stream(step(1, 0), late))
    with pytest.raises(UnavailableError, match="Not in time"):
        model.generate("x", on_step=lambda at: None)


@pytest.mark.parametrize("events", [(step(1, 0),), (step(1, 0), DRAWN), (DONE,)])
def test_events_that_break_off_are_no_answer(model: Model, service: ScriptedService, events) -> None:
    service.on("POST", GENERATE, stream(*events))
    with pytest.raises(APIConnectionError, match="broke off"):
        model.generate("x", on_step=lambda at: None)


def test_a_busy_service_is_asked_again_before_events_have_begun(model: Model, service: ScriptedService) -> None:
    service.on("POST", GENERATE, problem("busy", 429), CUT, stream(DRAWN, DONE))
    assert len(model.generate("x", on_step=lambda at: None)) == 1
    service.on("POST", GENERATE, problem("busy", 429))
    with pytest.raises(BusyError):
        model.generate("x", on_step=lambda at: None)


class Slow(BaseHTTPRequestHandler):
    """Begins a stream of steps and never ends it; notes when its reader has gone."""

    gone = threading.Event()

    def do_GET(self) -> None:
        body = MODEL.model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(encoded(step(1, 0)))
                time.sleep(0.02)
        except OSError:
            self.gone.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[str]:
    Slow.gone.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_exception_of_ones_own_closes_the_connection(slow: str) -> None:
    def enough(at: DrawingProgress) -> None:
        raise RuntimeError("enough")

    with Client(slow, "key") as client:
        with pytest.raises(RuntimeError, match="enough") as caught:
            client.models.get("mdl_1").generate("x", on_step=enough)
        assert Slow.gone.wait(10)  # while client and traceback are still there
    assert caught.value.args == ("enough",)


def test_ctrl_c_ends_the_drawing(slow: str) -> None:
    command = [sys.executable, "-m", "booth.cli", "generate", "mdl_1", "--prompt", "x", "--progress"]
    environment = {"BOOTH_BASE_URL": slow, "BOOTH_API_KEY": "key", "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "step 1/3 of 1 picture(s)\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert said.endswith("stopped; nothing more is drawn\n")
    assert Slow.gone.wait(10)


def run(*arguments: str | Path):
    return CliRunner().invoke(app, ["generate", "mdl_1", "--prompt", "a cat in the snow", *map(str, arguments)])


def test_the_command_line_steers_all_of_it(model: Model, service: ScriptedService, tmp_path: Path) -> None:
    (tmp_path / "start.png").write_bytes(png_of(40))
    edited = picture(source_png_base64=in_base64(png("blue")))
    events = stream(step(1, 0), GenerateEvent(kind="picture", places=[0], picture=edited), DONE)
    service.on("POST", GENERATE, events)
    flags = ["--size", "96x64", "--scheduler", "euler", "--image", tmp_path / "start.png", "--strength", "0.5"]
    flags += ["--edit-from", "a dog in the snow", "--edit-mode", "refine", "--edit-words", "snow=2", "--cross", "0.6"]
    flags += ["--edit-words", "a=b=-1", "--self", "0.3", "--blend", "dog", "--blend", "cat", "--progress"]
    result = run(*flags, "-o", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    sent = sent_json(service.asked("POST", GENERATE)[0])
    assert (sent["width"], sent["height"], sent["scheduler"], sent["strength"]) == (96, 64, "euler", 0.5)
    assert sent["edit"] == {
        "source_prompt": "a dog in the snow",
        "mode": "refine",
        "words": {"snow": 2, "a=b": -1},
        "cross_replace_steps": 0.6,
        "self_replace_steps": 0.3,
        "blend": ["dog", "cat"],
    }
    assert "step 1/3 of 1 picture(s)" in result.stderr
    [saved] = json.loads(result.stdout)
    assert Path(saved["path"]).read_bytes() == png()
    assert Path(saved["source"]).read_bytes() == png("blue")


def test_without_options_an_edit_is_as_the_service_says(model: Model, service: ScriptedService, tmp_path: Path) -> None:
    assert run("--edit-from", "a dog in the snow", "-o", tmp_path).exit_code == 0
    sent = sent_json(service.asked("POST", GENERATE)[0])["edit"]
    assert sent == PromptEdit(source_prompt="a dog in the snow").model_dump()
    assert run("-o", tmp_path).exit_code == 0
    assert sent_json(service.asked("POST", GENERATE)[1])["edit"] is None


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--size", "large"], 2, "Give WIDTHxHEIGHT"),
        (["--edit-mode", "refine"], 2, "need --edit-from"),
        (["--blend", "dog"], 2, "need --edit-from"),
        (["--edit-from", "x", "--edit-words", "snow"], 2, "Give WORD=FACTOR"),
        (["--edit-from", "x", "--edit-words", "=2"], 2, "Give WORD=FACTOR"),
        (["--edit-from", "x", "--edit-mode", "swap"], 6, "edit.mode = 'swap'"),
        (["--edit-from", "x", "--cross", "2"], 6, "edit.cross_replace_steps = 2.0"),
        (["--scheduler", "eulerr"], 6, "scheduler = 'eulerr'"),
        (["--image", "none.png"], 6, "image = none.png: There is no such file."),
    ],
    ids=str,
)
def test_wrong_options_are_named(
    model: Model, service: ScriptedService, flags: list[str], code: int, said: str
) -> None:
    result = run(*flags)
    assert result.exit_code == code
    assert said in result.stderr
    assert service.asked("POST", GENERATE) == []
