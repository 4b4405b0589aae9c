"""A large local file goes up in parts, and a failure leaves nothing."""

import os
from pathlib import Path

import pytest

from booth_service.errors import StorageError
from booth_service.storage import s3
from booth_service.storage.s3 import ObjectStore

MIB = 2**20


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """13 MiB and a bit, in parts of 5 MiB."""
    monkeypatch.setattr(s3, "UPLOAD_PART_BYTES", 5 * MIB)
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(13 * MIB + 7))
    return path


def test_a_large_file_arrives_whole(object_store: ObjectStore, file: Path) -> None:
    object_store.upload(file, "files/large")
    assert object_store.get("files/large") == file.read_bytes()


def test_a_failure_leaves_neither_object_nor_upload(
    object_store: ObjectStore, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = ObjectStore.put_part

    def second_fails(self, upload, number, body, sha256):
        if number == 2:
            raise StorageError("no")
        return send(self, upload, number, body, sha256)

    monkeypatch.setattr(ObjectStore, "put_part", second_fails)
    with pytest.raises(StorageError):
        object_store.upload(file, "files/failed")
    assert object_store.size("files/failed") is None
    assert list(object_store.uploads("files/")) == []
