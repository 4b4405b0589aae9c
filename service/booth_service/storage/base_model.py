"""A base model's files on this node: fetched from the object store once, checked by hash, shared by all processes."""

import hashlib
import mmap
import tempfile
from collections.abc import Sequence
from pathlib import Path

from booth.contract.attempts import StoredFile
from booth_service.errors import StorageError
from booth_service.settings import settings
from booth_service.storage.blobs import BlobCache
from booth_service.storage.fetch import fetch
from booth_service.storage.s3 import ObjectStore


def content_sha256(files: Sequence[StoredFile]) -> str:
    """One hash for a base model: over the paths and hashes of all its files."""
    return hashlib.sha256("".join(sorted(f"{file.path} {file.sha256}\n" for file in files)).encode()).hexdigest()


def materialize(store: ObjectStore, files: Sequence[StoredFile], scratch_dir: str | None = None) -> Path:
    """The local folder that holds exactly these files, for as long as this process lives; a second call finds it.

    Files that base models share (a VAE, a tokenizer) are fetched and kept once. Those that no process uses go, the
    longest unused first, where the cache would outgrow this node's BOOTH_BASE_CACHE_BYTES. Raises StorageError.
    """
    root = Path(scratch_dir or tempfile.gettempdir()) / "booth-base-models"
    cache = BlobCache(root, settings().base_cache_bytes, lambda file, view: fetch(store, [(file, view)]))
    try:
        return cache.folder(content_sha256(files)[:24], files)
    except OSError as error:
        room = sum(file.bytes for file in files) / 2**30
        raise StorageError(
            f"{root}: {error}. The base model needs {room:.1f} GiB there; BOOTH_SCRATCH_DIR names another disk"
        ) from error


def reference_views(
    store: ObjectStore, files: Sequence[StoredFile], scratch_dir: str | None = None
) -> dict[str, memoryview]:
    """The contents of references of one base model by SHA-256, in the memory of this node's cached files.

    Pages come from the disk as they are read and count as nobody's memory. Raises StorageError.
    """
    if not files:
        return {}
    folder = materialize(store, files, scratch_dir)
    return {file.sha256: _mapped(folder / file.path) for file in files}


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
