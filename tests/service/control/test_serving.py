"""What Serve is told to forget. It is a real HTTP server here."""

from dataclasses import replace

import httpx2
import pytest
from control_plane import http, started
from painter import served_by
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from booth.contract.serving import FORGET_PATH, SECRET_HEADER
from booth_service.control import serving
from booth_service.control.records import Model


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
