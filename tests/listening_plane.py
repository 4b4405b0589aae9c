"""A control plane that takes beats and reports of a driver, and keeps them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ListeningPlane(ThreadingHTTPServer):
    """What was said, in order; `desired` is what every answer says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.desired = "run"

    @property
    def beats(self) -> list[tuple[str, int]]:
        progress = [body["progress"] for path, body in self.said if path.endswith("/beat")]
        return [(each["phase"], each["step"]) for each in progress]

    def wait_for_another_beat(self) -> None:
        """A beat that began after this call has been answered: one may be on its way now."""
        before = len(self.beats)
        while len(self.beats) < before + 2:
            time.sleep(0.02)


class Answer(BaseHTTPRequestHandler):
    server: ListeningPlane

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.said.append((self.path, body))
        answer = json.dumps({"desired": self.server.desired}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening_plane() -> Iterator[ListeningPlane]:
    """One that listens on loopback while the block runs."""
    server = ListeningPlane()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
