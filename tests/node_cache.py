"""A process that uses a cache of blobs, to be started, watched and killed: python node_cache.py ROOT LIMIT SOURCE NAME.

SOURCE is a folder of files; NAME picks those whose paths are in NAME.json beside it. What the process has done goes to
stdout, a word a line: "begun" at the first byte, "ready FOLDER" at the end; then it waits for a line on stdin.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

from booth.contract.attempts import StoredFile
from booth_service.storage.blobs import BlobCache

CHUNK_BYTES = 64 * 2**10


def recorded(source: Path, paths: dict[str, str]) -> list[StoredFile]:
    """Records of files of the source: path in the folder -> name in the source."""
    bodies = {path: (source / name).read_bytes() for path, name in paths.items()}
    return [
        StoredFile(path=path, key=paths[path], bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
        for path, body in bodies.items()
    ]


class Slowly:
    """Copies a file chunk by chunk with a pause after each, as a network does; remembers what was asked of it."""

    def __init__(self, source: Path, pause_s: float = 0.0) -> None:
        self.source, self.pause_s = source, pause_s
        self.fetched: list[str] = []

    def __call__(self, file: StoredFile, view: memoryview) -> None:
        self.fetched.append(file.key)
        body = (self.source / file.key).read_bytes()
        for start in range(0, len(body), CHUNK_BYTES):
            view[start : start + CHUNK_BYTES] = body[start : start + CHUNK_BYTES]
            if start == 0:
                print("begun\n", end="", flush=True)
            time.sleep(self.pause_s)


if __name__ == "__main__":
    root, limit, source, name, pause = sys.argv[1:]
    listed = Path(source).with_name(f"{name}.json")
    files = recorded(Path(source), json.loads(listed.read_text()))
    fetch = Slowly(Path(source), float(pause))
    folder = BlobCache(Path(root), int(limit), fetch).folder(name, files)
    print(f"ready {folder} {len(fetch.fetched)}", flush=True)
    sys.stdin.readline()
