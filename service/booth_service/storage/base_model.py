"""A base model's files on this node: fetched from the object store once, checked by hash, shared by all processes."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from booth.contract.attempts import StoredFile
from booth_service.storage.s3 import ObjectStore

DOWNLOAD_THREADS = 8


def content_sha256(files: Sequence[StoredFile]) -> str:
    """One hash for a base model: over the paths and hashes of all its files."""
    return hashlib.sha256("".join(sorted(f"{file.path} {file.sha256}\n" for file in files)).encode()).hexdigest()


def materialize(store: ObjectStore, files: Sequence[StoredFile], scratch_dir: str | None = None) -> Path:
    """The local folder that holds exactly these files; a second call finds it.

    Files arrive in a temporary folder that is renamed when complete, so that a half-fetched model is never seen and
    processes that fetch at the same time do not disturb each other. Raises StorageError.
    """
    root = Path(scratch_dir or tempfile.gettempdir()) / "booth-base-models"
    root.mkdir(parents=True, exist_ok=True)
    name = content_sha256(files)[:24]
    folder = root / name
    if folder.exists():
        return folder
    partial = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
    with ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
        jobs = [pool.submit(store.download, file.key, partial / file.path, file.sha256) for file in files]
        for job in jobs:
            job.result()
    try:
        partial.rename(folder)
    except OSError:  # another process was first; its folder has the same content
        shutil.rmtree(partial)
    return folder
