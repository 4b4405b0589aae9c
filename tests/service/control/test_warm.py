"""The hand-over of a published model to a replica, and of the news that one was deleted. Serve is a Starlette app."""

from dataclasses import replace

import httpx2
import pytest
from control_plane import http, started
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from booth.contract.serving import DELETED_PATH, ROUTING_HEADER, SECRET_HEADER, WARM_PATH, ModelRef
from booth_service.control import warm
from booth_service.control.records import Model


class Replica:
    """What a replica is told to warm, and what users saw of the model at that moment."""

    def __init__(self, look=lambda: None, status: int = 204) -> None:
        self.look, self.status = look, status
        self.told: list[tuple[ModelRef, str, str]] = []
        self.seen: list = []
        self.app = Starlette(routes=[Route(WARM_PATH, self.warm, methods=["POST"])])

    async def warm(self, request: Request) -> Response:
        model = ModelRef.model_validate_json(await request.body())
        self.told.append((model, request.headers[SECRET_HEADER], request.headers[ROUTING_HEADER]))
        self.seen.append(self.look())
        return Response(status_code=self.status)


def before(plane, replica: Replica):
    """The same control plane in front of this replica, hours after it began."""
    return replace(plane, began_s=float("-inf"), serve_now=httpx2.Client(transport=TestClient(replica.app)._transport))


def published(plane, driver) -> httpx2.Response:
    with http(plane) as client:
        driver.http, old = client, driver.http
        client.headers["Authorization"] = old.headers["Authorization"]
        try:
            return driver.publish()
        finally:
            driver.http = old


def deleted(plane, held: list[str], secret: str = "stack secret") -> httpx2.Response:
    with http(plane) as client:
        return client.post(DELETED_PATH, json={"manifest_sha256s": held}, headers={SECRET_HEADER: secret})


def test_a_replica_holds_the_model_before_its_job_succeeds(plane, user):
    driver = started(plane, user)
    replica = Replica()
    fronted = before(plane, replica)

    def look():
        manifest = replica.told[-1][0].manifest_sha256
        return driver.job["status"], deleted(fronted, [manifest, "f" * 64]).json()["manifest_sha256s"]

    replica.look = look
    assert published(fronted, driver).status_code == 200
    with plane.database.read() as session:
        model = session.get_one(Model, driver.job["model_id"])
    [(told, secret, routed_by)] = replica.told
    assert (told.model_id, told.manifest_key, secret) == (model.id, model.manifest_key, "stack secret")
    assert routed_by == told.manifest_sha256 == model.manifest_sha256
    [(status, gone)] = replica.seen
    assert status != "succeeded"
    assert gone == ["f" * 64], "what is being handed over is not deleted"
    assert driver.job["status"] == "succeeded"
    assert fronted.handed_over == set()


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_replica_that_refuses_delays_no_job(plane, user, status):
    driver = started(plane, user)
    assert published(before(plane, Replica(status=status)), driver).status_code == 200
    assert driver.job["status"] == "succeeded"


def test_a_serve_that_is_away_delays_no_job(plane, user, unused_port):
    driver = started(plane, user)
    settings = plane.settings.model_copy(update={"serve_url": f"http://127.0.0.1:{unused_port}"})
    assert published(replace(plane, settings=settings), driver).status_code == 200
    assert driver.job["status"] == "succeeded"


def test_no_time_for_it_means_no_call(plane, user):
    driver = started(plane, user)
    replica = Replica()
    fronted = before(plane, replica)
    fronted = replace(fronted, settings=plane.settings.model_copy(update={"serving_warm_s": 0.0}))
    assert published(fronted, driver).status_code == 200
    assert replica.told == []


def test_returning_replicas_get_the_newest_models_that_fit(plane, user, clock):
    models = []
    for _ in range(3):
        driver = started(replace(plane, settings=plane.settings.model_copy(update={"max_running_jobs": 9})), user)
        driver.publish()
        with plane.database.read() as session:
            models.append(session.get_one(Model, driver.job["model_id"]))
        clock.advance(1)
    replica = Replica()
    room = models[0].bytes * 5 // 2
    fronted = before(replace(plane, settings=plane.settings.model_copy(update={"model_cache_bytes": room})), replica)
    warm.newest(fronted, models[::-1])
    assert [told.model_id for told, *_ in replica.told] == [models[2].id, models[1].id]


def test_replicas_learn_which_models_were_deleted(plane, user):
    driver = started(plane, user)
    driver.publish()
    with plane.database.read() as session:
        manifest = session.get_one(Model, driver.job["model_id"]).manifest_sha256
    assert deleted(plane, [manifest]).json() == {"manifest_sha256s": []}
    with http(plane) as client:
        headers = {"Authorization": user.http.headers["Authorization"]}
        assert client.delete(f"/v1/models/{driver.job['model_id']}", headers=headers).status_code == 204
    assert deleted(plane, [manifest, "0" * 64]).json() == {"manifest_sha256s": [manifest]}
    settled = replace(plane, began_s=float("-inf"))
    assert deleted(settled, [manifest, "0" * 64]).json() == {"manifest_sha256s": [manifest, "0" * 64]}


@pytest.mark.parametrize("secret", ["", "a guess", "gu\u00e9ss"])
def test_strangers_learn_nothing_about_models(plane, secret):
    answer = deleted(plane, ["0" * 64], secret.encode("latin-1"))
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
