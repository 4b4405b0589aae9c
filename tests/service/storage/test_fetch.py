"""Stored files into memory, whole and in parts, and what is said of a byte that has turned."""

import hashlib
import os
import random
import shutil

import pytest

from booth.contract.attempts import StoredFile
from booth.contract.digests import part_ranges, sha256_of_parts
from booth_service.errors import ObjectMissing, StorageError
from booth_service.settings import settings
from booth_service.storage import fetch as fetching
from booth_service.storage import locks
from booth_service.storage.base_model import materialize
from booth_service.storage.fetch import fetch
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

BODY = random.Random(1).randbytes(700_001)
PART_BYTES = 100_000


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "RANGE_BYTES", PART_BYTES)


def stored(store: ObjectStore, name: str, body: bytes, *, in_parts: bool, put: bytes | None = None) -> StoredFile:
    """The record of `body`; what lies in the store may be something else."""
    store.put(f"fetch/{name}", body if put is None else put)
    digests = [hashlib.sha256(body[a : a + n]).hexdigest() for a, n in part_ranges(len(body), PART_BYTES)]
    return StoredFile(
        path=name,
        key=f"fetch/{name}",
        bytes=len(body),
        sha256=sha256_of_parts(digests) if in_parts else hashlib.sha256(body).hexdigest(),
        part_bytes=PART_BYTES if in_parts else 0,
        part_sha256=digests if in_parts else [],
    )


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("size", [0, 1, PART_BYTES, len(BODY)])
def test_files_arrive_whole(object_store: ObjectStore, in_parts: bool, size: int) -> None:
    files = [stored(object_store, f"{name}-{size}", BODY[:size][::step], in_parts=in_parts)
             for name, step in (("one", 1), ("two", -1))]  # fmt: skip
    memory = [bytearray(file.bytes) for file in files]
    fetch(object_store, [(file, memoryview(place)) for file, place in zip(files, memory, strict=True)])
    assert memory == [BODY[:size], BODY[:size][::-1]]


@pytest.mark.parametrize(("in_parts", "named"), [(True, "part 3, bytes 300000 to 400000"), (False, "SHA-256")])
def test_a_turned_bit_is_refused_and_named(object_store: ObjectStore, in_parts: bool, named: str) -> None:
    damaged = bytearray(BODY)
    damaged[312_345] ^= 1
    file = stored(object_store, "turned", BODY, in_parts=in_parts, put=bytes(damaged))
    with pytest.raises(StorageError, match=f"fetch/turned .*{named}"):
        fetch(object_store, [(file, memoryview(bytearray(file.bytes)))])


@pytest.mark.parametrize("in_parts", [True, False])
def test_an_object_that_is_short_or_absent_is_named(object_store: ObjectStore, in_parts: bool) -> None:
    file = stored(object_store, "short", BODY, in_parts=in_parts, put=BODY[:-1])
    with pytest.raises(StorageError, match="fetch/short"):
        fetch(object_store, [(file, memoryview(bytearray(file.bytes)))])
    absent = file.model_copy(update={"key": "fetch/absent"})
    with pytest.raises(ObjectMissing, match="fetch/absent"):
        fetch(object_store, [(absent, memoryview(bytearray(file.bytes)))])


def test_a_record_that_contradicts_itself_is_refused(object_store: ObjectStore) -> None:
    file = stored(object_store, "odd", BODY, in_parts=True)
    for changed in ({"part_sha256": file.part_sha256[:-1]}, {"sha256": "0" * 64}, {"part_bytes": 0}):
        with pytest.raises(StorageError, match="parts do not make up its SHA-256"):
            fetch(object_store, [(file.model_copy(update=changed), memoryview(bytearray(file.bytes)))])


def test_the_nodes_limit_is_heeded(object_store: ObjectStore, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ([stored(object_store, f"unet/limit-{k}", BODY[k:], in_parts=False)] for k in (5, 6))
    folders = tmp_path / "booth-base-models" / "folders"
    for limit, left in ((2 * len(BODY), 2), (len(BODY), 1)):
        monkeypatch.setenv("BOOTH_BASE_CACHE_BYTES", str(limit))
        settings.cache_clear()
        shutil.rmtree(tmp_path, ignore_errors=True)
        unused = materialize(object_store, one, str(tmp_path))
        os.close(locks._held.pop(unused))  # as if the process that used it had ended
        materialize(object_store, two, str(tmp_path))
        assert len(list(folders.iterdir())) == left
    settings.cache_clear()


def test_a_base_model_lies_in_a_folder_and_a_damaged_one_in_none(object_store: ObjectStore, tmp_path) -> None:
    files = [stored(object_store, f"unet/{k}", BODY[k:], in_parts=bool(k)) for k in range(2)]
    folder = materialize(object_store, files, str(tmp_path / "good"))
    assert [(folder / file.path).read_bytes() for file in files] == [BODY, BODY[1:]]
    bad = stored(object_store, "unet/2", BODY[2:], in_parts=False, put=BODY[:1:-1])
    with pytest.raises(StorageError, match="fetch/unet/2"):
        materialize(object_store, [*files, bad], str(tmp_path / "bad"))
    assert list((tmp_path / "bad" / "booth-base-models" / "folders").iterdir()) == []
    assert not [path for path in (tmp_path / "bad").rglob("*") if path.name == bad.sha256]
