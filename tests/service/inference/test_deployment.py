"""The Serve application in one process: who may call it, what refusals become, how events are told, who cancels."""

import asyncio
import json

import pytest
import torch
from starlette.requests import Request

from booth.contract.serving import (
    FORGET_PATH,
    SECRET_HEADER,
    STREAM_PATH,
    WARM_PATH,
    Draw,
    DrawAnswer,
    DrawEvent,
    Drawn,
    DrawRefusal,
    DrawRequest,
    ForgetRequest,
    ModelRef,
)
from booth_service import settings as settings_module
from booth_service.errors import BadWeights, CannotDraw, DrawTimeout, EngineBusy, ObjectMissing
from booth_service.inference.deployment import Painter, replica_devices, serve_options
from booth_service.inference.ticket import Ticket
from booth_service.inference.weights_cache import Load
from booth_service.settings import Settings
from booth_service.storage.s3 import ObjectStore

MODEL = ModelRef(model_id="model-1", base_model="tiny", base_files=[])
WANTED = DrawRequest(
    model=MODEL,
    draws=[Draw(prompt="p", negative_prompt="", seed=1)],
    guidance_scale=1,
    num_inference_steps=2,
    width=64,
    height=64,
)
ANSWER = DrawAnswer(pictures=[Drawn(png_base64="cG5n")])
STEP = DrawEvent(kind="step", step=1, total_steps=2, places=[0])


class Script:
    """An engine whose one answer is given: an answer, an error, or nothing ever."""

    def __init__(self, outcome: DrawAnswer | Exception | None, refuses: bool = False) -> None:
        self.outcome, self.refuses = outcome, refuses
        self.tickets: list[Ticket] = []
        self.warmed: list[ModelRef] = []
        self.stuck = 0.0

    def submit(self, request: DrawRequest, on_event=None) -> Ticket:
        if self.refuses:
            raise self.outcome
        ticket = Ticket()
        self.tickets.append(ticket)
        if on_event is not None:
            on_event(STEP)
        if isinstance(self.outcome, Exception):
            ticket.future.set_exception(self.outcome)
        elif self.outcome is not None:
            ticket.future.set_result(self.outcome)
        return ticket

    def warm(self, model: ModelRef) -> None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.warmed.append(model)

    def stuck_s(self) -> float:
        return self.stuck


@pytest.fixture
def painter(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BOOTH_S3_BUCKET", object_store.bucket)
    monkeypatch.setenv("BOOTH_S3_ENDPOINT_URL", object_store.client.meta.endpoint_url)
    monkeypatch.setenv("BOOTH_STACK_SECRET", "the secret")
    settings_module.settings.cache_clear()
    painter = Painter()
    yield painter
    painter.deletions.stop()
    painter.engine.close()
    settings_module.settings.cache_clear()


def scripted(painter: Painter, outcome: DrawAnswer | Exception | None, refuses: bool = False) -> Script:
    painter.engine.close()
    painter.engine = Script(outcome, refuses)
    painter.engine.close = lambda: None
    return painter.engine


def post(path: str, body: str, secret: str = "the secret", method: str = "POST") -> Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": body.encode()}

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "server": ("serve", 80)}
    headers = [(SECRET_HEADER.encode(), secret.encode("latin-1"))]
    return Request({**scope, "scheme": "http", "headers": headers}, receive)


def asked(painter: Painter, path: str = "/", body: str | None = None, **more):
    return asyncio.run(painter(post(path, WANTED.model_dump_json() if body is None else body, **more)))


async def events(painter: Painter) -> list[DrawEvent]:
    answer = await painter(post(STREAM_PATH, WANTED.model_dump_json()))
    assert answer.media_type == "text/event-stream"
    lines = [line async for line in answer.body_iterator]
    assert all(line.startswith("data: ") and line.endswith("\n\n") for line in lines)
    return [DrawEvent.model_validate_json(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize(("secret", "status", "left"), [("the secret", 204, 0), ("a gu\u00e9ss", 403, 1), ("", 403, 1)])
def test_a_model_is_forgotten_for_the_stacks_secret_alone(
    painter: Painter, secret: str, status: int, left: int
) -> None:
    painter.engine.models.cache.load([Load("0" * 64, 12, lambda: {"unet": {"w": torch.zeros(3)}})])
    body = ForgetRequest(manifest_sha256="0" * 64).model_dump_json()
    assert asked(painter, FORGET_PATH, body, secret=secret).status_code == status
    assert len(painter.engine.held()) == left


@pytest.mark.parametrize("path", ["/", STREAM_PATH, WARM_PATH, "/docs", "/-/anything"])
def test_strangers_get_nothing_but_the_health(painter: Painter, path: str) -> None:
    engine = scripted(painter, ANSWER)
    assert asked(painter, path, secret="").status_code == 403
    assert asked(painter, "/healthz", secret="", method="GET").status_code == 200
    assert engine.tickets == []


@pytest.mark.parametrize(("path", "method"), [("/docs", "POST"), ("/", "GET"), (FORGET_PATH, "DELETE")])
def test_nothing_else_is_there(painter: Painter, path: str, method: str) -> None:
    scripted(painter, ANSWER)
    assert asked(painter, path, method=method).status_code == 404


def test_pictures_come_back(painter: Painter) -> None:
    scripted(painter, ANSWER)
    answer = asked(painter)
    assert (answer.status_code, DrawAnswer.model_validate_json(answer.body)) == (200, ANSWER)


REFUSALS = [
    (CannotDraw("5 px are no multiple of 8"), 422, "invalid"),
    (EngineBusy("256 pictures wait"), 429, "busy"),
    (DrawTimeout("600 s"), 504, "timeout"),
    (ObjectMissing("model.json"), 503, "storage"),
    (BadWeights("unet is damaged"), 503, "bad_model"),
    (ZeroDivisionError("a secret"), 500, "internal"),
]


@pytest.mark.parametrize(("error", "status", "reason"), REFUSALS)
@pytest.mark.parametrize("refuses", [False, True])
def test_each_refusal_has_its_status(painter: Painter, error, status, reason, refuses) -> None:
    scripted(painter, error, refuses)
    answer = asked(painter)
    refusal = DrawRefusal.model_validate_json(answer.body)
    assert (answer.status_code, refusal.reason) == (status, reason)
    assert ("Retry-After" in answer.headers) == (status == 429)
    assert "a secret" not in refusal.detail


def test_a_body_that_is_no_request_is_invalid(painter: Painter) -> None:
    scripted(painter, ANSWER)
    answer = asked(painter, body='{"draws": 5}')
    assert (answer.status_code, json.loads(answer.body)["reason"]) == (422, "invalid")


def test_an_engine_that_never_answers_is_timed_out_and_told_so(painter: Painter, monkeypatch) -> None:
    monkeypatch.setattr("booth_service.inference.deployment._GRACE_S", 0.0)
    engine = scripted(painter, None)
    answer = asked(painter, body=WANTED.model_copy(update={"timeout_s": 0.05}).model_dump_json())
    assert (answer.status_code, json.loads(answer.body)["reason"]) == (504, "timeout")
    assert engine.tickets[0].is_cancelled


@pytest.mark.parametrize("path", ["/", STREAM_PATH])
def test_a_caller_who_goes_away_cancels_the_ticket(painter: Painter, path: str) -> None:
    engine = scripted(painter, None)

    async def leave() -> None:
        async def read() -> None:
            answer = await painter(post(path, WANTED.model_dump_json()))
            async for _ in answer.body_iterator:
                pass

        reading = asyncio.ensure_future(read())
        while not engine.tickets:
            await asyncio.sleep(0.01)
        assert not engine.tickets[0].is_cancelled
        await asyncio.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(leave())
    assert engine.tickets[0].is_cancelled


def test_events_are_told_in_order_and_end_with_done(painter: Painter) -> None:
    scripted(painter, ANSWER)
    assert asyncio.run(events(painter)) == [STEP, DrawEvent(kind="done")]


def test_a_stream_that_is_refused_says_why(painter: Painter) -> None:
    scripted(painter, BadWeights("unet is damaged"))
    *_, last = asyncio.run(events(painter))
    assert last == DrawEvent(kind="refused", refusal=DrawRefusal(reason="bad_model", detail="unet is damaged"))


def test_a_model_is_warmed_or_refused(painter: Painter) -> None:
    engine = scripted(painter, ANSWER)
    assert asked(painter, WARM_PATH, MODEL.model_dump_json()).status_code == 204
    assert engine.warmed == [MODEL]
    scripted(painter, BadWeights("damaged"))
    assert asked(painter, WARM_PATH, MODEL.model_dump_json()).status_code == 503


def test_a_stuck_device_is_a_failed_health_check(painter: Painter) -> None:
    engine = scripted(painter, ANSWER)
    engine.stuck = painter.stuck_limit_s
    painter.check_health()
    engine.stuck = painter.stuck_limit_s + 1
    with pytest.raises(RuntimeError, match="denoising step"):
        painter.check_health()


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        ({}, {"num_cpus": 0}),
        ({"serving_gpus": 1}, {"num_cpus": 0, "num_gpus": 1}),
        ({"serving_gpus": 2, "serving_replicas": 4}, {"num_cpus": 0, "num_gpus": 0.5}),
        ({"serving_gpus": 4, "serving_replicas": 2}, {"num_cpus": 0, "num_gpus": 2}),
        ({"serving_yields": "GPU"}, {"num_cpus": 0, "num_gpus": 1}),
        ({"serving_yields": "DEVICE"}, {"num_cpus": 0, "resources": {"DEVICE": 1}}),
    ],
)
def test_a_replica_takes_no_cpu_and_its_share_of_the_devices(config: dict, devices: dict) -> None:
    assert replica_devices(Settings(**config)) == devices


@pytest.mark.parametrize("config", [{}, {"serving_batch_size": 64}, {"serving_queue_pictures": 1}])
def test_queues_are_bounded_and_full_ones_answer_429(config: dict) -> None:
    settings = Settings(**config)
    options = serve_options(settings)
    ongoing, queued = options["max_ongoing_requests"], options["max_queued_requests"]
    assert min(ongoing, queued) >= 1
    assert ongoing + queued <= max(2, settings.serving_queue_pictures)
    pressure = options["backpressure_config"]
    assert pressure.status_code == 429
    assert pressure.retry_after_s > 0
