"""What a suite of encoders made of an arm's pictures, in the object store: in blocks, whose records are put last."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import Base64Bytes, ValidationError

from booth.contract.base import Record
from booth_service.errors import StorageError
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

THREADS = 8


class EncodedBlock(Record):
    """The record of a block: of which pictures (by number of the first one, and by content), and where it lies."""

    first: int
    picture_sha256: list[str]
    vectors_key: str
    vectors_sha256: str
    thumbnails_key: str
    thumbnails_sha256: str


class Thumbnails(Record):
    """Small copies of pictures, each by the picture's own key."""

    pictures: dict[str, Base64Bytes]


@dataclass(frozen=True)
class Place:
    """Where blocks of an arm lie: below its prefix, by the content of the suite that made them."""

    store: ObjectStore
    arm: str
    suite_id: str

    def put(self, first: int, pictures: Sequence[str], vectors: bytes, thumbnails: Thumbnails) -> EncodedBlock:
        """The block exists; `pictures` are the SHA-256 of what it was made of. A repetition puts the same again."""
        small = thumbnails.model_dump_json().encode()
        digests = [hashlib.sha256(body).hexdigest() for body in (vectors, small)]
        block = EncodedBlock(
            first=first,
            picture_sha256=list(pictures),
            vectors_key=keys.block_vectors(self.arm, self.suite_id, first, digests[0]),
            vectors_sha256=digests[0],
            thumbnails_key=keys.block_thumbnails(self.arm, first, digests[1]),
            thumbnails_sha256=digests[1],
        )
        self.store.put(block.vectors_key, vectors)
        self.store.put(block.thumbnails_key, small, "application/json")
        self.store.put(self._record(first), block.model_dump_json().encode(), "application/json")
        return block

    def find(self, first: int, pictures: Sequence[str]) -> EncodedBlock | None:
        """The block that stands whole and was made of these very pictures."""
        try:
            block = EncodedBlock.model_validate_json(self.store.get(self._record(first)))
            if block.picture_sha256 != list(pictures):
                return None
            self.store.get(block.vectors_key, block.vectors_sha256)
            self.store.get(block.thumbnails_key, block.thumbnails_sha256)
        except (StorageError, ValidationError):
            return None
        return block

    def _record(self, first: int) -> str:
        return keys.encoded_block(self.arm, self.suite_id, first)


def read_thumbnails(store: ObjectStore, blocks: Sequence[EncodedBlock]) -> dict[str, bytes]:
    """The small copies of all pictures of the blocks, by the pictures' keys."""
    with ThreadPoolExecutor(THREADS) as pool:
        bodies = list(pool.map(lambda each: store.get(each.thumbnails_key, each.thumbnails_sha256), blocks))
    found: dict[str, bytes] = {}
    for body in bodies:
        found |= Thumbnails.model_validate_json(body).pictures
    return found
