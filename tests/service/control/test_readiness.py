"""/v1/ready: the parts that must answer and those that may come later, on a real database and a real bucket."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from control_plane import Cluster, http

from booth_service.control.database import Database
from booth_service.control.plane import Plane
from booth_service.storage.s3 import ObjectStore


def asked(plane) -> httpx2.Response:
    with http(plane) as client:
        return client.get("/v1/ready")


@contextmanager
def with_serve(plane: Plane, status: int) -> Iterator[Plane]:
    """A proxy like Serve's that answers its health path with this status, and nothing else."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/-/healthz" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = plane.settings.model_copy(update={"serve_url": f"http://127.0.0.1:{server.server_port}/"})
        yield replace(plane, settings=settings)
        server.shutdown()


def test_it_is_ready_with_everything_there(plane):
    with with_serve(plane, 200) as complete:
        answer = asked(complete)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "database": "ok", "bucket": "ok", "ray": "ok", "serve": "ok"}


def test_ray_and_serve_may_come_later(plane, cluster):
    cluster.is_away = True
    with with_serve(plane, 503) as starting:
        answer = asked(starting)
    assert answer.status_code == 200
    assert (answer.json()["ray"], answer.json()["serve"]) == ("no answer", "no answer")


@pytest.mark.parametrize("part", ["database", "bucket"])
def test_without_database_or_bucket_it_is_not_ready_and_strangers_hear_no_more(plane, part):
    if part == "database":
        broken = replace(plane, database=Database("sqlite:////nowhere/booth.db"))
    else:
        store = plane.store
        broken = replace(plane, store=ObjectStore("nobody-made-this", store.client.meta.endpoint_url, "us-east-1"))
    answer = asked(broken)
    assert answer.status_code == 503
    assert answer.json() | {"serve": "?"} == {
        "status": "not ready", "database": "ok", "bucket": "ok", "ray": "ok", "serve": "?", part: "no answer"
    }  # fmt: skip


def test_many_who_ask_at_once_ask_the_parts_once(plane):
    class Counted(Cluster):
        asked = 0

        def refusal(self) -> None:
            self.asked += 1

    counted = replace(plane, launcher=Counted())

    async def ask() -> None:
        await asyncio.gather(*(counted.readiness.look(counted) for _ in range(10)))

    asyncio.run(ask())
    assert counted.launcher.asked == 1
