"""A holder of copies asks which models were deleted, over real HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from booth.contract.serving import DELETED_PATH, SECRET_HEADER
from booth_service.inference.deletions import Deletions


class Shelf:
    def __init__(self, *held: str) -> None:
        self.copies = list(held)

    def held(self) -> list[str]:
        return list(self.copies)

    def forget(self, manifest_sha256: str) -> None:
        self.copies.remove(manifest_sha256)


class ControlPlane(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.deleted: set[str] = set()
        self.statuses: list[int] = []
        self.asked: list[tuple[str, str, list[str]]] = []


class Handler(BaseHTTPRequestHandler):
    server: ControlPlane

    def do_POST(self) -> None:
        held = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["manifest_sha256s"]
        self.server.asked.append((self.path, self.headers[SECRET_HEADER], held))
        body = json.dumps({"manifest_sha256s": sorted(self.server.deleted & set(held))}).encode()
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    server = ControlPlane()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def url(plane: ControlPlane) -> str:
    return f"http://127.0.0.1:{plane.server_port}"


def test_what_was_deleted_is_forgotten_and_nothing_else(plane: ControlPlane) -> None:
    shelf = Shelf("a", "b")
    plane.deleted = {"b", "c"}
    assert Deletions(shelf, url(plane), "the secret").ask() == ["b"]
    assert shelf.copies == ["a"]
    assert plane.asked == [(DELETED_PATH, "the secret", ["a", "b"])]


def test_who_holds_nothing_asks_nothing(plane: ControlPlane) -> None:
    assert Deletions(Shelf(), url(plane), "the secret").ask() == []
    assert plane.asked == []


def test_an_error_is_no_deletion_and_asking_goes_on(plane: ControlPlane) -> None:
    shelf = Shelf("a", "b")
    plane.deleted, plane.statuses = {"b"}, [401]
    deletions = Deletions(shelf, url(plane), "the secret", ask_every_s=0.02)
    with pytest.raises(httpx2.HTTPStatusError):
        deletions.ask()
    assert shelf.copies == ["a", "b"]
    plane.statuses = [503]
    deletions.start()
    waited = threading.Event()
    while shelf.copies != ["a"] and not waited.wait(0.01):
        pass
    deletions.stop()
    assert len(plane.asked) >= 3
