"""Any range of a stored file is what it would be in the file itself, whichever way it is stored."""

import hashlib
import random

import pytest

from booth.contract.attempts import Delta, StoredFile
from booth.contract.delta import CODING
from booth.contract.digests import part_ranges, sha256_of_parts
from booth_service.errors import DamagedObject
from booth_service.storage import keys
from booth_service.storage.delta import encode
from booth_service.storage.fetch import fetch
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.stored_file import Ranges

pytestmark = pytest.mark.s3

PART_BYTES = 1000
REFERENCE = random.Random(0).randbytes(4 * PART_BYTES + 333)  # an odd end
BODY = bytes(byte if place % 3 else byte ^ 1 for place, byte in enumerate(REFERENCE))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def reference(object_store: ObjectStore) -> StoredFile:
    object_store.put("ranges/reference", REFERENCE)
    return StoredFile(path="x", key="ranges/reference", bytes=len(REFERENCE), sha256=sha256(REFERENCE))


@pytest.fixture(scope="module")
def whole(object_store: ObjectStore) -> StoredFile:
    object_store.put("ranges/whole", BODY)
    return StoredFile(path="x", key="ranges/whole", bytes=len(BODY), sha256=sha256(BODY))


@pytest.fixture(scope="module")
def difference(object_store: ObjectStore, reference: StoredFile) -> StoredFile:
    ranges = part_ranges(len(BODY), PART_BYTES)
    chunks = [encode(BODY[a : a + n], REFERENCE[a : a + n]) for a, n in ranges]
    for part, chunk in enumerate(chunks):
        object_store.put(keys.model_chunk("ranges/x", part), chunk)
    digests = [sha256(BODY[a : a + n]) for a, n in ranges]
    delta = Delta(
        coding=CODING,
        reference=reference,
        chunk_bytes=[len(chunk) for chunk in chunks],
        chunk_sha256=[sha256(chunk) for chunk in chunks],
    )
    return StoredFile(
        path="x", key="ranges/x", bytes=len(BODY), sha256=sha256_of_parts(digests), part_bytes=PART_BYTES,
        part_sha256=digests, delta=delta,
    )  # fmt: skip


def test_any_range_is_read(object_store: ObjectStore, whole: StoredFile, difference: StoredFile) -> None:
    files = [Ranges(object_store, each) for each in (whole, difference)]
    edges = [0, 1, 2, 999, 1000, 1001, 2500, 3999, 4000, len(BODY) - 2, len(BODY) - 1, len(BODY)]
    for start in edges:
        for end in (end for end in edges if end > start):
            assert [file.read(start, end - start) for file in files] == [BODY[start:end]] * 2, (start, end)
    assert [file.read(4300, 1000) for file in files] == [BODY[4300:]] * 2
    assert [file.read(5, 0) for file in files] == [b""] * 2


def test_a_chunk_is_fetched_once_for_ranges_in_order(
    object_store: ObjectStore, difference: StoredFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    get = ObjectStore.get_range_into
    monkeypatch.setattr(ObjectStore, "get_range_into", lambda self, key, *a: fetched.append(key) or get(self, key, *a))
    file = Ranges(object_store, difference)
    for start in range(0, len(BODY), 100):
        file.read(start, 100)
    assert fetched == [keys.model_chunk("ranges/x", part) for part in range(5)]


def test_a_difference_and_a_whole_file_arrive_together(
    object_store: ObjectStore, whole: StoredFile, difference: StoredFile, reference: StoredFile
) -> None:
    memory = [bytearray(len(BODY)) for _ in range(2)]
    wanted = list(zip((whole, difference), map(memoryview, memory), strict=True))
    fetch(object_store, wanted, {reference.sha256: memoryview(REFERENCE)})
    assert memory == [BODY, BODY]


def test_a_chunk_that_is_no_difference_is_named(object_store: ObjectStore, difference: StoredFile) -> None:
    assert difference.delta is not None
    key = keys.model_chunk("ranges/odd", 0)
    object_store.put(key, b"no zstd frame")
    delta = difference.delta.model_copy(
        update={
            "chunk_bytes": [13, *difference.delta.chunk_bytes[1:]],
            "chunk_sha256": [sha256(b"no zstd frame"), *difference.delta.chunk_sha256[1:]],
        }
    )
    odd = difference.model_copy(update={"key": "ranges/odd", "delta": delta})
    with pytest.raises(DamagedObject, match=key):
        Ranges(object_store, odd).read(0, 10)
