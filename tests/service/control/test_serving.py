"""Pictures: what is asked of Serve, and what its answers and silences become. Serve is a real HTTP server here."""

import asyncio
import json
from dataclasses import replace

import httpx2
import pytest
from control_plane import RECIPE, http, started
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from booth.contract.serving import FORGET_PATH, SECRET_HEADER, DrawAnswer, Drawn, DrawRequest
from booth_service.control import serving
from booth_service.control.records import Model


class Painter:
    """A Serve application that remembers what it was asked."""

    def __init__(self, status: int = 200, headers: dict | None = None) -> None:
        self.asked: list[DrawRequest] = []
        self.secrets: list[str] = []
        self.status, self.headers = status, headers or {}
        self.app = Starlette(routes=[Route("/", self.draw, methods=["POST"])])

    async def draw(self, request) -> Response:
        wanted = DrawRequest.model_validate_json(await request.body())
        self.asked.append(wanted)
        self.secrets.append(request.headers[SECRET_HEADER])
        answer = DrawAnswer(pictures=[Drawn(png_base64=f"png{draw.seed}") for draw in wanted.draws])
        return Response(answer.model_dump_json(), self.status, self.headers, "application/json")


def served_by(plane, painter: Painter):
    """The same control plane in front of this Serve."""
    return replace(plane, serve=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=painter.app)))


def ask(plane, user, path: str, **body) -> httpx2.Response:
    with http(plane) as client:
        return client.post(path, json=body, headers={"Authorization": user.http.headers["Authorization"]})


def test_a_models_pictures_follow_prompt_and_seed(plane, user):
    driver = started(plane, user)
    driver.publish()
    painter = Painter()
    path = f"/v1/models/{driver.job['model_id']}/generate"
    answer = ask(served_by(plane, painter), user, path, prompts=["one", "two"], num_images=2, seed=5).json()
    assert [(picture["prompt"], picture["seed"]) for picture in answer["pictures"]] == [
        ("one", 5),
        ("one", 6),
        ("two", 5),
        ("two", 6),
    ]
    assert [picture["png_base64"] for picture in answer["pictures"]] == ["png5", "png6", "png5", "png6"]
    [asked] = painter.asked
    with plane.database.read() as session:
        model = session.get_one(Model, driver.job["model_id"])
    assert (asked.model.manifest_key, asked.model.manifest_sha256) == (model.manifest_key, model.manifest_sha256)
    assert (asked.guidance_scale, asked.num_inference_steps, asked.width, asked.height) == (4.0, 20, 64, 64)
    assert painter.secrets == ["stack secret"]


def test_what_is_asked_for_wins_over_the_recipe(plane, user):
    painter = Painter()
    body = {"prompts": ["p"], "guidance_scale": 0, "num_inference_steps": 3, "negative_prompt": "n"}
    answer = ask(served_by(plane, painter), user, "/v1/base-models/tiny/generate", **body).json()
    assert (answer["guidance_scale"], answer["num_inference_steps"]) == (0, 3)
    assert painter.asked[0].draws[0].negative_prompt == "n"
    assert painter.asked[0].model.manifest_key is None
    assert painter.asked[0].width == painter.asked[0].height == RECIPE.resolution


def test_without_a_seed_one_is_drawn_and_told(plane, user):
    painter = Painter()
    path = "/v1/base-models/tiny/generate"
    seeds = [ask(served_by(plane, painter), user, path, prompts=["p"]).json()["pictures"][0]["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert seeds == [asked.draws[0].seed for asked in painter.asked]


def test_the_highest_seed_goes_round(plane, user):
    painter = Painter()
    body = {"prompts": ["p"], "num_images": 2, "seed": 2**63 - 1}
    answer = ask(served_by(plane, painter), user, "/v1/base-models/tiny/generate", **body).json()
    assert [picture["seed"] for picture in answer["pictures"]] == [2**63 - 1, 0]


@pytest.mark.parametrize(
    ("status", "headers", "answered", "code", "retry_after"),
    [
        (429, {"Retry-After": "3"}, 429, "busy", "3"),
        (503, {}, 503, "unavailable", "5"),
        (404, {}, 503, "unavailable", "5"),
        (500, {}, 500, "internal", None),
        (403, {}, 500, "internal", None),
    ],
)
def test_refusals_of_serve_become_problems(plane, user, status, headers, answered, code, retry_after):
    answer = ask(served_by(plane, Painter(status, headers)), user, "/v1/base-models/tiny/generate", prompts=["p"])
    assert (answer.status_code, answer.json()["code"]) == (answered, code)
    assert answer.headers.get("Retry-After") == retry_after
    assert "stack secret" not in json.dumps(answer.json())


def test_a_serve_that_is_not_there_is_unavailable(plane, user, unused_port):
    settings = plane.settings.model_copy(update={"serve_url": f"http://127.0.0.1:{unused_port}"})
    away = replace(plane, settings=settings, serve=httpx2.AsyncClient(trust_env=False))
    answer = ask(away, user, "/v1/base-models/tiny/generate", prompts=["p"])
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    asyncio.run(away.serve.aclose())


class Forgetful:
    """A Serve that is told what to forget, after so many refusals."""

    def __init__(self, *refusals: int) -> None:
        self.refusals, self.told = list(refusals), []
        self.app = Starlette(routes=[Route(FORGET_PATH, self.forget, methods=["POST"])])

    async def forget(self, request) -> Response:
        self.told.append((request.headers[SECRET_HEADER], (await request.json())["manifest_sha256"]))
        return Response(status_code=self.refusals.pop(0) if self.refusals else 204)


@pytest.mark.parametrize("refusals", [(), (503,), (429, 503)])
def test_serve_is_told_to_forget_a_deleted_model(plane, user, monkeypatch, refusals):
    monkeypatch.setattr(serving, "FORGET_PAUSES_S", (0.0, 0.0, 0.0))
    driver = started(plane, user)
    driver.publish()
    with plane.database.read() as session:
        sha256 = session.get_one(Model, driver.job["model_id"]).manifest_sha256
    serve = Forgetful(*refusals)
    with http(served_by(plane, serve)) as client:
        headers = {"Authorization": user.http.headers["Authorization"]}
        assert client.delete(f"/v1/models/{driver.job['model_id']}", headers=headers).status_code == 204
        assert client.delete(f"/v1/models/{driver.job['model_id']}", headers=headers).status_code == 404
    assert serve.told == [("stack secret", sha256)] * (len(refusals) + 1)


def test_a_model_is_deleted_where_serve_is_away(plane, user, unused_port, monkeypatch):
    monkeypatch.setattr(serving, "FORGET_PAUSES_S", (0.0, 0.0))
    driver = started(plane, user)
    driver.publish()
    settings = plane.settings.model_copy(update={"serve_url": f"http://127.0.0.1:{unused_port}"})
    with http(replace(plane, settings=settings, serve=httpx2.AsyncClient(trust_env=False))) as client:
        headers = {"Authorization": user.http.headers["Authorization"]}
        assert client.delete(f"/v1/models/{driver.job['model_id']}", headers=headers).status_code == 204
        assert client.get(f"/v1/models/{driver.job['model_id']}", headers=headers).status_code == 404


def test_an_answer_with_too_few_pictures_is_none(plane, user):
    class Short(Painter):
        async def draw(self, request) -> Response:
            return Response(DrawAnswer(pictures=[]).model_dump_json(), media_type="application/json")

    answer = ask(served_by(plane, Short()), user, "/v1/base-models/tiny/generate", prompts=["p"])
    assert answer.status_code == 503


def test_an_unknown_base_model_is_not_found(plane, user):
    assert ask(plane, user, "/v1/base-models/sd9/generate", prompts=["p"]).status_code == 404
