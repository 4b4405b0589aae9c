"""A base model folder in the object store, as the control plane puts it there."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from booth.contract.attempts import StoredFile
from booth.contract.jobs import ExportDtype
from booth_service.control import base_references, base_sources
from booth_service.storage import fetch as fetching
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore


def store_base(store: ObjectStore, folder: Path) -> list[StoredFile]:
    """Upload every file by content and return their records."""
    return [
        store_file(store, path, path.relative_to(folder).as_posix())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def store_file(store: ObjectStore, path: Path, name: str) -> StoredFile:
    body = path.read_bytes()
    sha256 = hashlib.sha256(body).hexdigest()
    store.put(keys.base_file(sha256), body)
    return StoredFile(path=name, key=keys.base_file(sha256), bytes=len(body), sha256=sha256)


def store_references(
    store: ObjectStore, folder: Path, files: Iterable[StoredFile], dtype: ExportDtype = "float16"
) -> list[StoredFile]:
    """What publishing the base in `folder` untrained would give, stored as `boothctl base-models add` does it."""
    source = base_sources.folder(folder, store).files
    made = [
        base_references.stored_reference(store, file, source[file.path], dtype)
        for file in files
        if base_references.is_trained(file.path)
    ]
    return [each for each in made if each is not None]


def whole(store: ObjectStore, file: StoredFile) -> bytes:
    """The file's bytes as readers get them, whichever way it is stored. Raises StorageError where they are damaged."""
    body = bytearray(file.bytes)
    reference = file.delta and file.delta.reference
    references = {reference.sha256: memoryview(store.get(reference.key, reference.sha256))} if reference else {}
    fetching.fetch(store, [(file, memoryview(body))], references)
    return bytes(body)


def fetch(store: ObjectStore, files: Iterable[StoredFile], folder: Path) -> None:
    """The files lie in the folder, checked by hash."""
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(whole(store, file))
