"""A hub of our own: what huggingface_hub's client asks of the real one, for folders of this machine."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

COMMITS = {"main": "a" * 40, "b" * 40: "b" * 40}


class Hub(BaseHTTPRequestHandler):
    """A repository's files at a commit, and each of them."""

    folders: dict[str, Path]
    asked: list[str]

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, with_body: bool) -> None:
        headers, body, commit = {}, b"", None
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/revision/([^?]+)\?.*", self.path):
            commit = COMMITS.get(match[2]) if match[1] in self.folders else None
            body = json.dumps({"id": match[1], "sha": commit, "siblings": self.siblings(match[1])}).encode()
        elif match := re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.*)", self.path):
            commit, body = match[2], (self.folders[match[1]] / match[3]).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": hashlib.sha256(body).hexdigest()}
            if with_body:
                self.asked.append(f"{commit[:1]} {match[3]}")
        self.send_response(200 if commit else 404)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if with_body else b"")

    def siblings(self, name: str) -> list[dict]:
        listed, folder = [], self.folders.get(name)
        for path in sorted(folder.rglob("*")) if folder else []:
            if path.is_file():
                body = path.read_bytes()
                lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 1}
                is_large = path.suffix == ".safetensors"
                file = {"rfilename": path.relative_to(folder).as_posix(), "size": len(body)}
                listed.append({**file, **({"lfs": lfs} if is_large else {})})
        return listed


@contextmanager
def own_hub(folders: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """The client of this process asks a hub that has these repositories; what it was asked for is in `asked`."""
    handler = type("OneHub", (Hub,), {"folders": folders, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
