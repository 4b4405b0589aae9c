"""Stored files into memory that is there already: parallel ranged reads, every byte hashed as it arrives.

What is stored as a difference is added to its reference in the thread that fetches it, straight into its place.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from booth.contract.attempts import StoredFile
from booth.contract.delta import DeltaBroken
from booth.contract.digests import part_ranges
from booth_service.errors import DamagedObject
from booth_service.storage import keys
from booth_service.storage.delta import decode_into
from booth_service.storage.s3 import ObjectStore
from booth_service.storage.stored_file import get_chunk, refuse_contradiction

THREADS = 8
NO_REFERENCES: Mapping[str, memoryview] = {}
RANGE_BYTES = 32 * 2**20  # of a file that has no parts of its own


def fetch(
    store: ObjectStore,
    wanted: Sequence[tuple[StoredFile, memoryview]],
    references: Mapping[str, memoryview] = NO_REFERENCES,
) -> None:
    """Every view holds the bytes of its file, and they are the recorded ones.

    A view is writable, of one byte an item, and as long as its file. A file in parts is checked part by part, in the
    thread that reads the part; another one as a whole, by whichever thread finds its next range there. `references`
    are the whole contents, by SHA-256, of what files that are stored as differences name. Raises StorageError, naming
    the file and the part that has other bytes than were recorded, or the part's chunk.
    """
    pieces = [piece for file, view in wanted for piece in _pieces(file, view, references)]
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [pool.submit(piece.read, store) for piece in pieces]
        done, rest = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in rest:
            job.cancel()
        for job in done:
            job.result()
    for piece in pieces:
        piece.in_order.refuse_wrong()


class InOrder:
    """The SHA-256 of a file whose ranges arrive in any order. `sha256` None: its parts have digests of their own."""

    def __init__(self, file: StoredFile, view: memoryview, sha256: str | None) -> None:
        self.file, self._view, self._wanted = file, view, sha256
        self._digest = hashlib.sha256()
        self._ends: dict[int, int] = {}
        self._next, self._busy, self._lock = 0, False, threading.Lock()

    def arrived(self, start: int, length: int) -> None:
        """These bytes are there. Hashes all that are next in line, unless another thread is at it."""
        if self._wanted is None:
            return
        with self._lock:
            self._ends[start] = start + length
            if self._busy:
                return  # whoever is busy looks for it before it stops
            self._busy = True
        while True:
            with self._lock:
                first, end = self._next, self._ends.pop(self._next, None)
                if end is None:
                    self._busy = False
                    return
                self._next = end
            self._digest.update(self._view[first:end])

    def refuse_wrong(self) -> None:
        """Raise StorageError where all bytes have come and are not the recorded ones."""
        if self._wanted is not None and self._digest.hexdigest() != self._wanted:
            raise DamagedObject(
                f"{self.file.key} ({self.file.path}) does not have the recorded SHA-256 {self.file.sha256}"
            )


@dataclass(frozen=True)
class Piece:
    """A range of a file, and where its bytes go. `sha256` is that of the range, where it is known.

    `reference` is the same range of the reference, where the file is stored as a difference.
    """

    file: StoredFile
    number: int
    start: int
    view: memoryview
    sha256: str | None
    in_order: InOrder
    reference: memoryview | None = None

    def read(self, store: ObjectStore) -> None:
        """The bytes are in the view; what arrives damaged is read again, once."""
        if self.reference is not None:
            return self._decode(store, self.reference)
        for _ in range(2):
            store.get_range_into(self.file.key, self.start, self.view)
            if self.sha256 is None or hashlib.sha256(self.view).hexdigest() == self.sha256:
                self.in_order.arrived(self.start, len(self.view))
                return
        raise DamagedObject(
            f"{self.file.key} ({self.file.path}) does not have the recorded SHA-256 in part {self.number}, bytes "
            f"{self.start} to {self.start + len(self.view)}"
        )

    def _decode(self, store: ObjectStore, reference: memoryview) -> None:
        assert self.file.delta is not None
        stored = get_chunk(store, self.file, self.number)
        key = keys.model_chunk(self.file.key, self.number)
        try:
            decode_into(stored, reference, self.view)
        except DeltaBroken as error:
            raise DamagedObject(f"{key}: {error}") from None
        if hashlib.sha256(self.view).hexdigest() != self.sha256:
            raise DamagedObject(
                f"part {self.number} of {self.file.path} does not have the recorded SHA-256: its chunk {key} is as it "
                f"was written, so this node's copy of the reference {self.file.delta.reference.key} is damaged"
            )


def _pieces(file: StoredFile, view: memoryview, references: Mapping[str, memoryview]) -> list[Piece]:
    """Raises StorageError where the record contradicts itself."""
    refuse_contradiction(file)
    if len(view) != file.bytes:
        raise ValueError(f"{file.path} has {file.bytes} bytes, the memory for it {len(view)}")
    in_parts = bool(file.part_sha256)
    ranges = part_ranges(file.bytes, max(1, file.part_bytes) if in_parts else RANGE_BYTES)
    digests: list[str] | list[None] = file.part_sha256 if in_parts else [None] * len(ranges)
    in_order = InOrder(file, view, None if in_parts else file.sha256)
    return [
        Piece(
            file,
            number,
            start,
            view[start : start + length],
            sha256,
            in_order,
            references[file.delta.reference.sha256][start : start + length] if file.delta else None,
        )
        for number, ((start, length), sha256) in enumerate(zip(ranges, digests, strict=True))
    ]
