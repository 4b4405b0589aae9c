"""Processes that share a node's cache of base models are killed at random: nothing half is taken, nothing is left."""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from node_cache import Slowly, recorded

from booth_service.storage.blobs import BlobCache

ROUNDS, PROCESSES = 30, 3
MIB = 2**20
LIMIT_BYTES = 9 * MIB  # of the three models, at most two have room
MODELS = {
    "one": {"unet/weights": "unet-one", "vae/weights": "vae", "index.json": "index"},
    "two": {"unet/weights": "unet-two", "vae/weights": "vae"},
    "three": {"unet/weights": "unet-three"},
}
SIZES = {"unet-one": 4 * MIB + 5, "unet-two": 4 * MIB, "unet-three": 4 * MIB, "vae": MIB, "index": 0}
SCRIPT = Path(__file__).resolve().parents[1] / "node_cache.py"


def row(folder: Path) -> str:
    """Rounds of three processes that want models at the same time, each of which may be killed at any moment."""
    source, root, moments = folder / "source", folder / "cache", random.Random(0)
    source.mkdir()
    for name, size in SIZES.items():
        (source / name).write_bytes(random.Random(name).randbytes(size))
    for name, paths in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(paths))
    killed = sum(one_round(root, source, moments) for _ in range(ROUNDS))
    last = Slowly(source)
    for name, paths in MODELS.items():
        check_folder(BlobCache(root, LIMIT_BYTES, last).folder(name, recorded(source, paths)), source)
    left = [path.name for part in ("building", "partial") for path in (root / part).iterdir()]
    assert not left, left
    return f"{ROUNDS} rounds, {killed} of {ROUNDS * PROCESSES} processes killed, no half file, no leftover"


def one_round(root: Path, source: Path, moments: random.Random) -> int:
    """How many processes were killed; whatever of their folders and blobs is there is whole."""
    names = moments.choices(sorted(MODELS), k=PROCESSES)
    command = [sys.executable, str(SCRIPT), str(root), str(LIMIT_BYTES), str(source)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*command, name, "0.003"], **pipes) for name in names]
    assert running[0].stdout
    first_word = running[0].stdout.readline()  # bytes are on their way, or all is there already
    killed = 0
    for process in moments.sample(running, k=moments.randint(1, PROCESSES)):
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        killed += 1
    for process in running:
        said, _ = process.communicate("enough\n")
        if process.returncode == 0:
            assert "ready" in (first_word if process is running[0] else "") + said, said
        else:
            assert process.returncode == -9, process.returncode
    if (root / "blobs").exists():
        for blob in (root / "blobs").iterdir():
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name, blob
        for each in (root / "folders").iterdir():
            check_folder(each, source)
    return killed


def check_folder(folder: Path, source: Path) -> None:
    """The folder has the model's files, each as it is in the source."""
    paths = MODELS[folder.name]
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(paths)
    for path, name in paths.items():
        assert (folder / path).read_bytes() == (source / name).read_bytes(), path
