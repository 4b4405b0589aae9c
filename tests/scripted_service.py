"""A real HTTP server on loopback that gives scripted answers and remembers what it was asked."""

import hashlib
import io
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pydantic
from PIL import Image

from booth.contract.jobs import Event, EventPage, JobRecord, LogPage, Params, PreparedJob, Progress
from booth.contract.models import ModelRecord
from booth.contract.problems import Problem
from booth.contract.samples import JobSamples, SampledStep, SampleFile
from booth.contract.states import JobState

CUT = -1  # an answer that never comes: the connection is closed

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

PARAMS = Params(
    base_model="tiny",
    token="sks",
    class_noun="dog",
    instance_prompt="a photo of a sks dog",
    class_prompt="a photo of a dog",
    steps=10,
    learning_rate=1e-5,
    text_encoder_learning_rate=1e-5,
    prior_loss_weight=1.0,
    num_class_images=4,
    train_text_encoder=True,
    resolution=64,
    train_batch_size=1,
    seed=7,
    weight_decay=0.01,
    max_grad_norm=1.0,
    lr_warmup_steps=0,
    random_flip=False,
    checkpoint_interval_steps=5,
)
MODEL = ModelRecord(
    id="mdl_1",
    job_id="job_1",
    name="rex",
    base_model="tiny",
    token="sks",
    class_noun="dog",
    prompt_prefix="sks dog",
    bytes=10,
    created_at=NOW,
)
PREPARED = PreparedJob(params=PARAMS, uploads=[])


def job_record(status: JobState = JobState.QUEUED, **changes: object) -> JobRecord:
    record = JobRecord(
        id="job_1",
        name="rex",
        status=status,
        status_detail="Waiting for its turn.",
        progress=Progress(),
        params=PARAMS,
        created_at=NOW,
    )
    return record.model_copy(update=changes)


EVENTS = "/v1/jobs/job_1/events"
DONE = job_record(JobState.SUCCEEDED, model_id="mdl_1")


def event(seq: int, status: JobState, message: str = "as it goes") -> Event:
    return Event(seq=seq, at=NOW, kind="state", message=message, status=status)


def page(*events: Event, job: JobRecord | None = None) -> EventPage:
    return EventPage(events=list(events), job=job or job_record(JobState.TRAINING))


def log(text: str, end: int, attempt: int = 1, complete: bool = False) -> LogPage:
    return LogPage(text=text, next_offset=end, attempt=attempt, complete=complete)


PROMPTS = ["a photo of sks dog", "a photo of sks dog on the beach"]
SAMPLES = "/v1/jobs/job_1/samples"


def sampled(service: "ScriptedService", *steps: int) -> JobSamples:
    """A listing of strips whose pictures lie behind links of the service; each has a colour of its own."""
    listed = []
    for step in steps:
        files = []
        for number, prompt in enumerate(PROMPTS):
            png = sample_png(step, number)
            path = f"/s3/{step}/{number}"
            service.on("GET", path, png)
            digest = hashlib.sha256(png).hexdigest()
            url = f"{service.url}{path}?sig=x"
            files.append(SampleFile(prompt=prompt, seed=7, bytes=len(png), sha256=digest, url=url))
        listed.append(SampledStep(step=step, attempt=1, pictures=files))
    return JobSamples(steps=listed)


def sample_colour(step: int, number: int) -> tuple[int, int, int]:
    return (step % 256, 100 * number, 50)


def sample_png(step: int, number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), sample_colour(step, number)).save(buffer, "PNG")
    return buffer.getvalue()


def problem(code: str, status: int, title: str = "No.", **more: object) -> Problem:
    return Problem(code=code, title=title, status=status, request_id="req-1", **more)


@dataclass
class Call:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedService:
    """Answers by method and path, in order; the last one repeats. A Problem is answered with its status."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    scripts: dict[tuple[str, str], list[pydantic.BaseModel | bytes | int]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def on(self, method: str, path: str, *answers: pydantic.BaseModel | bytes | int) -> None:
        self.scripts[method, path] = list(answers)

    def asked(self, method: str, path: str) -> list[Call]:
        return [call for call in self.calls if (call.method, call.path) == (method, path)]

    def answer(self, call: Call) -> tuple[int, bytes, str]:
        self.calls.append(call)
        script = self.scripts.get((call.method, call.path))
        if not script:
            found = problem("not_found", 404, f"There is no {call.method} {call.path}.")
        else:
            found = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(found, Problem):
            return found.status, found.model_dump_json().encode(), "application/problem+json"
        if isinstance(found, pydantic.BaseModel):
            return 200, found.model_dump_json().encode(), "application/json"
        if isinstance(found, int):
            return found, b"", "text/plain"
        return 200, found, "application/octet-stream"


@contextmanager
def scripted_service() -> Iterator[ScriptedService]:
    service = ScriptedService()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = Call(self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers), body)
            status, content, kind = service.answer(call)
            if status == CUT:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sent_json(call: Call) -> dict[str, object]:
    return json.loads(call.body)
