"""What Serve's refusals and silences become, and what a user who goes away ends. Serve is a real HTTP server here."""

import asyncio
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import replace

import httpx2
import pytest
from control_plane import http, started
from loopback import on_loopback
from painter import Painter, served_by

from booth.contract.event_stream import EventReader
from booth.contract.serving import DrawRefusal

PLAIN, EVENTS = "application/json", "text/event-stream"
BASE = "/v1/base-models/tiny/generate"


def refusal(reason: str, detail: str = "tenants/t/jobs/j: bytes differ at http://10.0.0.3:8333") -> DrawRefusal:
    return DrawRefusal(reason=reason, detail=detail)


def headers_of(user, accept: str = PLAIN) -> dict[str, str]:
    return {"Authorization": user.http.headers["Authorization"], "Accept": accept}


def ask(plane, user, path: str = BASE, accept: str = PLAIN, **body) -> httpx2.Response:
    with http(plane) as client:
        return client.post(path, json={"prompts": ["p"], **body}, headers=headers_of(user, accept))


@contextmanager
def on_network(plane, painter: Painter):
    """The control plane's URL, with Serve and control plane as real HTTP servers."""
    with on_loopback(painter.app) as serve_url:
        settings = plane.settings.model_copy(update={"serve_url": serve_url})
        real = replace(plane, settings=settings, serve=httpx2.AsyncClient(trust_env=False))
        with on_loopback(http(real).app) as url:
            yield url


@pytest.mark.parametrize("accept", [PLAIN, EVENTS])
@pytest.mark.parametrize(
    ("painter", "answered", "code", "retry_after"),
    [
        (Painter(status=429, **{"Retry-After": "3"}), 429, "busy", "3"),
        (Painter(refusal("busy"), 429, **{"Retry-After": "7"}), 429, "busy", "7"),
        (Painter(refusal("busy"), 429), 429, "busy", "5"),
        (Painter(refusal("timeout"), 504), 504, "timeout", None),
        (Painter(status=504), 504, "timeout", None),
        (Painter(status=503), 503, "unavailable", "5"),
        (Painter(status=404), 503, "unavailable", "5"),
        (Painter(refusal("paused"), 503), 503, "paused", "5"),
        (Painter(refusal("out_of_memory"), 503), 503, "unavailable", "30"),
        (Painter(refusal("internal"), 503), 500, "internal", None),
        (Painter(status=500), 500, "internal", None),
        (Painter(status=403), 500, "internal", None),
    ],
    ids=lambda value: (
        f"{value.status}-{value.refusal and value.refusal.reason}" if isinstance(value, Painter) else None
    ),
)
def test_refusals_of_serve_become_problems(plane, user, accept, painter, answered, code, retry_after):
    answer = ask(served_by(plane, painter), user, accept=accept)
    assert (answer.status_code, answer.json()["code"]) == (answered, code)
    assert answer.headers.get("Retry-After") == retry_after
    assert answer.json()["title"]
    assert "stack secret" not in answer.text
    assert plane.calls.under_way == 0


def test_what_took_all_its_time_is_not_tried_again_by_clients(plane, user):
    answer = ask(served_by(plane, Painter(refusal("timeout"), 504)), user)
    assert answer.headers["x-should-retry"] == "false"
    assert "fewer or smaller pictures" in answer.json()["remedy"]


@pytest.mark.parametrize(("body", "field"), [({}, "prompts"), ({"edit": {"source_prompt": "a b"}}, "edit")])
@pytest.mark.parametrize("accept", [PLAIN, EVENTS])
def test_what_the_engine_cannot_draw_is_the_users_to_mend(plane, user, accept, body, field):
    detail = "The word 'cat' is not in the prompt. Name words of it."
    answer = ask(served_by(plane, Painter(refusal("invalid", detail), 422)), user, accept=accept, **body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    [problem] = answer.json()["problems"]
    assert (problem["field"], problem["message"]) == (field, detail)


@pytest.mark.parametrize(
    ("reason", "status", "remedy"), [("bad_model", 500, "Train it again"), ("storage", 503, "train it again")]
)
def test_a_damaged_model_is_named_with_what_to_do(plane, user, reason, status, remedy):
    driver = started(plane, user)
    driver.publish()
    model_id = driver.job["model_id"]
    damaged = served_by(plane, Painter(refusal(reason), 503))
    answer = ask(damaged, user, f"/v1/models/{model_id}/generate")
    assert answer.status_code == status
    assert model_id in answer.json()["title"]
    assert remedy in answer.json()["remedy"]
    base = ask(damaged, user)
    assert "base model 'tiny'" in base.json()["title"]
    assert "rain it again" not in base.json()["remedy"]
    assert "10.0.0.3" not in answer.text + base.text


def events_of(answer: httpx2.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in EventReader().feed(answer.content)]


def test_a_refusal_on_the_way_ends_the_events(plane, user):
    late = Painter(refusal("bad_model"), 503)
    late.refuses_late = True
    answer = ask(served_by(plane, late), user, accept=EVENTS)
    events = events_of(answer)
    assert [event["kind"] for event in events] == ["step", "step", "step", "refused"]
    assert events[-1]["problem"]["code"] == "internal"
    assert events[-1]["problem"]["request_id"] == answer.headers["X-Request-Id"]


def test_events_that_break_off_end_with_a_problem(plane, user):
    cut = Painter()
    cut.breaks_after = 2
    events = events_of(ask(served_by(plane, cut), user, accept=EVENTS))
    assert [event["kind"] for event in events] == ["step", "step", "refused"]
    assert events[-1]["problem"]["code"] == "unavailable"
    cut.breaks_after = 0
    assert ask(served_by(plane, cut), user, accept=EVENTS).status_code == 503


@pytest.mark.parametrize("accept", [PLAIN, EVENTS])
def test_a_serve_that_is_not_there_is_unavailable(plane, user, unused_port, accept):
    settings = plane.settings.model_copy(update={"serve_url": f"http://127.0.0.1:{unused_port}"})
    away = replace(plane, settings=settings, serve=httpx2.AsyncClient(trust_env=False))
    answer = ask(away, user, accept=accept)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    asyncio.run(away.serve.aclose())


def test_an_answer_with_too_few_pictures_is_none(plane, user):
    painter = Painter()
    painter.missing = 1
    answer = ask(served_by(plane, painter), user, prompts=["a", "b"])
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


@pytest.mark.parametrize("accept", [PLAIN, EVENTS])
def test_who_goes_away_ends_the_drawing(plane, user, accept):
    painter = Painter()
    painter.hangs = True
    with on_network(plane, painter) as url:
        body = json.dumps({"prompts": ["p"]}).encode()
        lines = [
            f"POST {BASE} HTTP/1.1",
            "Host: here",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
        ]
        lines += [f"{name}: {value}" for name, value in headers_of(user, accept).items()]
        with socket.create_connection(("127.0.0.1", httpx2.URL(url).port)) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            assert painter.begun.wait(10)
            assert not painter.cancelled.is_set()
            assert plane.calls.under_way == 1
        assert painter.cancelled.wait(10)
        with httpx2.Client(trust_env=False) as client:  # the connection that was cut did not take the server along
            assert client.get(f"{url}/v1/health").status_code == 200
    assert plane.calls.under_way == 0


def test_a_user_who_stays_gets_events_as_they_come(plane, user):
    painter = Painter()
    painter.hangs = True
    with on_network(plane, painter) as url, httpx2.Client(trust_env=False) as client:
        body = {"prompts": ["p"]}
        with client.stream("POST", url + BASE, json=body, headers=headers_of(user, EVENTS)) as response:
            reader, seen = EventReader(), []
            for piece in response.iter_bytes():
                seen += reader.feed(piece)
                if len(seen) == 3:
                    break
        assert not painter.cancelled.is_set() or painter.cancelled.wait(10)
        assert painter.cancelled.wait(10)


def test_calls_under_way_have_a_limit(plane, user):
    painter = Painter()
    painter.hangs = True
    settings = plane.settings.model_copy(update={"serving_calls": 1})
    with on_network(replace(plane, settings=settings), painter) as url, httpx2.Client(trust_env=False) as client:
        first = threading.Thread(target=_abandoned, args=(url + BASE, headers_of(user), painter))
        first.start()
        assert painter.begun.wait(10)
        answer = client.post(url + BASE, json={"prompts": ["p"]}, headers=headers_of(user))
        assert (answer.status_code, answer.json()["code"], answer.headers["Retry-After"]) == (429, "busy", "2")
        assert len(painter.asked) == 1
        first.join()
        assert painter.cancelled.wait(10)
        painter.hangs = False
        while (answer := client.post(url + BASE, json={"prompts": ["p"]}, headers=headers_of(user))).status_code == 429:
            pass
        assert answer.status_code == 200


def _abandoned(url: str, headers: dict[str, str], painter: Painter) -> None:
    with httpx2.Client(trust_env=False, timeout=1) as client, pytest.raises(httpx2.ReadTimeout):
        client.post(url, json={"prompts": ["p"]}, headers=headers)
