"""The pulse: everything that was said arrives, whatever the control plane is doing. Against a real HTTP server."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from booth.contract.attempts import SampleStrip, StoredFile
from booth.contract.jobs import Progress
from booth.contract.scores import Score, StepScore
from booth.contract.states import Desired, JobState
from booth_service import beats
from booth_service.beats import Line, Pulse
from booth_service.errors import AttemptEnded
from booth_service.settings import attempt_token

SECRET = SecretStr("stack secret")


class ControlPlane(ThreadingHTTPServer):
    """Answers beats slowly, as one under load does, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.beats: list[dict[str, Any]] = []
        self.taken: list[dict[str, Any]] = []
        self.tokens: set[str] = set()
        self.status, self.desired, self.delay_s = 200, "run", 0.0


class Answer(BaseHTTPRequestHandler):
    server: ControlPlane

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay_s)
        status = self.server.status
        self.server.taken += [body] if status == 200 else []
        self.server.beats.append(body)
        self.server.tokens.add(self.headers["Authorization"])
        answer = json.dumps({"desired": self.server.desired}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    server = ControlPlane()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pulse(server: ControlPlane) -> Pulse:
    line = Line(f"http://127.0.0.1:{server.server_port}", SECRET, "job-1", 2)
    return Pulse(line, 5, JobState.PREPARING, Progress(phase="class images"))


def test_the_last_word_arrives_though_an_earlier_beat_is_on_its_way(control_plane: ControlPlane) -> None:
    control_plane.delay_s = 0.3
    with pulse(control_plane) as line:
        line.say(Progress(phase="class images", step=1), note="class images: 0 reused, 8 made")
        time.sleep(0.1)  # the first beat is being answered now
        line.say(Progress(phase="starting ranks"), state=JobState.TRAINING, warning="2 of 8 ranks")
    assert control_plane.beats[-1]["state"] == "training"
    assert [beat["note"] for beat in control_plane.beats].count("class images: 0 reused, 8 made") == 1
    assert [beat["warning"] for beat in control_plane.beats].count("2 of 8 ranks") == 1
    assert {beat["fence"] for beat in control_plane.beats} == {5}
    assert control_plane.tokens == {f"Bearer {attempt_token(SECRET, 'job-1', 2)}"}


def test_notes_outlive_a_control_plane_that_is_away(control_plane: ControlPlane) -> None:
    control_plane.status = 503
    with pulse(control_plane) as line:
        line.say(Progress(phase="class images"), note="first")
        while not control_plane.beats:
            time.sleep(0.01)
        assert line.desired is Desired.RUN
        control_plane.status = 200
        line.say(Progress(phase="class images", step=2), note="second")
    assert control_plane.beats[-1]["note"] == "first; second"


def strip(step: int) -> SampleStrip:
    file = StoredFile(path=f"samples/{step:08d}/00.png", key=f"a1/samples/{step:08d}/00.png", bytes=1, sha256="0")
    return SampleStrip(step=step, files=[file], seeds=[7])


def strips_of(beat: dict[str, Any]) -> list[int]:
    return [strip["step"] for strip in beat["samples"]]


def test_every_strip_outlives_a_control_plane_that_is_away_and_is_brought_once(control_plane: ControlPlane) -> None:
    control_plane.status = 503
    with pulse(control_plane) as line:
        line.say(Progress(phase="training", step=100), samples=strip(100))
        while not control_plane.beats:
            time.sleep(0.01)
        line.say(Progress(phase="training", step=200), samples=strip(200))
        line.say(Progress(phase="training", step=201))
        control_plane.status = 200
        while not control_plane.taken:
            time.sleep(0.01)
        line.say(Progress(phase="training", step=300), samples=strip(300))
    assert strips_of(control_plane.beats[0]) == [100]
    assert [step for beat in control_plane.taken for step in strips_of(beat)] == [100, 200, 300]
    assert control_plane.beats[0]["samples"][0] == strip(100).model_dump()


def test_last_words_wait_for_a_control_plane_that_is_away(control_plane: ControlPlane) -> None:
    control_plane.status = 503
    threading.Timer(1.5, lambda: setattr(control_plane, "status", 200)).start()
    with pulse(control_plane) as line:
        line.say(Progress(phase="training", step=400), samples=strip(400), note="the end")
    assert len(control_plane.beats) > 1
    assert strips_of(control_plane.beats[-1]) == [400]
    assert control_plane.beats[-1]["note"] == "the end"


def test_a_pulse_ends_though_nobody_ever_answers(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "LAST_WORDS_S", 0.5)
    control_plane.status = 503
    began = time.monotonic()
    with pulse(control_plane) as line:
        line.say(Progress(phase="training"), samples=strip(100))
    assert time.monotonic() - began < 5


def test_a_backlog_of_strips_goes_in_beats_that_the_api_reads(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats, "MAX_STRIPS_PER_BEAT", 2)
    with pulse(control_plane) as line:
        for step in range(5):
            line.say(Progress(phase="training", step=step), samples=strip(step))
    carried = [strips_of(beat) for beat in control_plane.beats]
    assert [step for steps in carried for step in steps] == [0, 1, 2, 3, 4]
    assert max(map(len, carried)) == 2


def score(step: int, memorised: int) -> StepScore:
    return StepScore(score=Score(step=step, suite="tiny", memorised=[7] * memorised), key="k", sha256="0" * 64)


def test_scores_go_in_beats_that_the_api_reads_and_are_brought_once(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats, "MAX_SCORE_BYTES_PER_BEAT", 2_000)
    scores = [score(100, 0), score(200, 0), score(300, 5_000), score(400, 0)]
    with pulse(control_plane) as line:
        line.say(Progress(phase="scoring"), scores=scores, selected_step=300)
    carried = [[each["score"]["step"] for each in beat["scores"]] for beat in control_plane.beats]
    assert [steps for steps in carried if steps] == [[100, 200], [300], [400]]
    assert control_plane.beats[-1]["selected_step"] == 300
    assert control_plane.beats[0]["scores"][0] == scores[0].model_dump(mode="json")


@pytest.mark.parametrize(("status", "desired"), [(200, "cancel"), (409, "run")])
def test_cancelled_and_overtaken_attempts_are_told(control_plane: ControlPlane, status: int, desired: str) -> None:
    control_plane.status, control_plane.desired = status, desired
    with pulse(control_plane) as line:
        line.say(Progress(phase="class images"))
        while line.desired is Desired.RUN:
            time.sleep(0.01)
        with pytest.raises(AttemptEnded):
            line.check()
