"""Stored files as they are read, whether they lie in the object store whole or as differences to a reference."""

import hashlib
from functools import lru_cache

from booth.contract.attempts import StoredFile
from booth.contract.delta import CODING, DeltaBroken, add_lanes, planes
from booth.contract.digests import part_ranges, sha256_of_parts
from booth_service.errors import DamagedObject
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore


def refuse_contradiction(file: StoredFile) -> None:
    """Raise DamagedObject where a file's record cannot be true, whatever is stored."""
    named = f"{file.key} ({file.path}) has a record"
    if not (file.part_sha256 or file.delta):
        return
    num_parts = len(part_ranges(file.bytes, max(1, file.part_bytes)))
    if len(file.part_sha256) != num_parts or sha256_of_parts(file.part_sha256) != file.sha256:
        raise DamagedObject(f"{named} whose parts do not make up its SHA-256")
    if file.delta is None:
        return
    delta, reference = file.delta, file.delta.reference
    if delta.coding != CODING:
        raise DamagedObject(f"{named} with differences in the format {delta.coding!r}; this service knows {CODING!r}")
    if not len(delta.chunk_bytes) == len(delta.chunk_sha256) == num_parts:
        raise DamagedObject(f"{named} of {num_parts} parts and another number of chunks")
    if reference.delta is not None or reference.bytes != file.bytes:
        raise DamagedObject(f"{named} that names the reference {reference.key}, which cannot be one of it")


def get_chunk(store: ObjectStore, file: StoredFile, part: int) -> bytes:
    """What is stored of a part. Raises DamagedObject, naming the chunk; what arrives damaged is read again, once."""
    assert file.delta is not None, f"{file.path} is stored whole"
    key, total_bytes = keys.model_chunk(file.key, part), file.delta.chunk_bytes[part]
    memory = bytearray(total_bytes)
    for _ in range(2):
        store.get_range_into(key, 0, memoryview(memory))
        if hashlib.sha256(memory).hexdigest() == file.delta.chunk_sha256[part]:
            return bytes(memory)
    raise DamagedObject(f"{key}, part {part} of {file.path}, does not have the recorded SHA-256")


class Ranges:
    """Reads ranges of one stored file. Of a difference whole chunks are fetched, the last one is kept.

    Raises StorageError, DamagedObject where the record contradicts itself or a chunk is not the recorded one.
    """

    def __init__(self, store: ObjectStore, file: StoredFile) -> None:
        refuse_contradiction(file)
        self._store, self._file = store, file
        self._parts = part_ranges(file.bytes, file.part_bytes) if file.delta else []
        self._planes = lru_cache(maxsize=1)(self._unpacked)

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, or fewer where the file ends before."""
        if self._file.delta is None:
            return self._store.get_range(self._file.key, start, length) if length else b""
        end = min(start + length, self._file.bytes)
        pieces = []
        for part, (first, part_length) in enumerate(self._parts):
            begin, stop = max(start, first), min(end, first + part_length)
            if begin < stop:
                pieces.append(self._window(part, begin - first, stop - first))
        return b"".join(pieces)

    def _window(self, part: int, begin: int, stop: int) -> bytes:
        """Bytes [begin, stop) of the part: of whole 16-bit lanes, of which the reference is read alone."""
        assert self._file.delta is not None
        first, length = self._parts[part]
        differences = self._planes(part)
        half = len(differences) // 2
        lane, end_lane = begin // 2, (stop + 1) // 2
        here = differences[lane:end_lane] + differences[half + lane : half + end_lane]
        bytes_there = min(2 * end_lane, length) - 2 * lane
        reference = self._store.get_range(self._file.delta.reference.key, first + 2 * lane, bytes_there)
        return add_lanes(here, reference)[begin - 2 * lane : stop - 2 * lane]

    def _unpacked(self, part: int) -> bytes:
        stored = get_chunk(self._store, self._file, part)
        try:
            return planes(stored, self._parts[part][1])
        except DeltaBroken as error:
            raise DamagedObject(f"{keys.model_chunk(self._file.key, part)}: {error}") from None
