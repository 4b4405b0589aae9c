"""How a published file's parts reach the object store: as one upload in parts, or each as a difference of its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from booth.contract.attempts import Delta, StoredFile
from booth.contract.delta import CODING
from booth.contract.digests import sha256_of_parts
from booth_service.publish.layout import FileLayout
from booth_service.publish.references import Reference
from booth_service.storage import keys
from booth_service.storage.delta import encode
from booth_service.storage.s3 import ObjectStore, StoredPart, Upload


@dataclass(frozen=True)
class SentPart:
    """A part (from 0) that is stored; `sha256` is of its bytes as they are read. The rest as its target needs it."""

    part: int
    sha256: str
    etag: str = ""
    chunk_bytes: int = 0
    chunk_sha256: str = ""


class Target(Protocol):
    """One file's. Any rank may send any part, in any order and from any thread; one rank finishes."""

    def send(self, store: ObjectStore, part: int, start: int, body: memoryview) -> SentPart: ...

    def finish(self, store: ObjectStore, layout: FileLayout, sent: Sequence[SentPart]) -> StoredFile: ...

    def clear(self, store: ObjectStore, layout: FileLayout) -> None:
        """Nothing of the file is stored any more."""
        ...


@dataclass(frozen=True)
class Whole:
    """An upload in parts that was begun."""

    upload: Upload

    def send(self, store: ObjectStore, part: int, start: int, body: memoryview) -> SentPart:
        digest = hashlib.sha256(body).hexdigest()
        return SentPart(part, digest, etag=store.put_part(self.upload, part + 1, body, digest).etag)

    def finish(self, store: ObjectStore, layout: FileLayout, sent: Sequence[SentPart]) -> StoredFile:
        stored = [StoredPart(each.part + 1, each.etag, each.sha256) for each in sent]
        store.complete(self.upload, stored, layout.total_bytes)
        return _record(self.upload.key, layout, sent)

    def clear(self, store: ObjectStore, layout: FileLayout) -> None:
        store.abort(self.upload)
        store.delete(self.upload.key)


@dataclass(frozen=True)
class Difference:
    """A chunk for every part: its difference to the same bytes of the reference, as an object below the file's key."""

    key: str
    reference: Reference

    def send(self, store: ObjectStore, part: int, start: int, body: memoryview) -> SentPart:
        chunk = encode(body, self.reference.view[start : start + len(body)])
        chunk_sha256 = hashlib.sha256(chunk).hexdigest()
        store.put_from(keys.model_chunk(self.key, part), memoryview(chunk), chunk_sha256)
        return SentPart(part, hashlib.sha256(body).hexdigest(), chunk_bytes=len(chunk), chunk_sha256=chunk_sha256)

    def finish(self, store: ObjectStore, layout: FileLayout, sent: Sequence[SentPart]) -> StoredFile:
        delta = Delta(
            coding=CODING,
            reference=self.reference.file,
            chunk_bytes=[each.chunk_bytes for each in sent],
            chunk_sha256=[each.chunk_sha256 for each in sent],
        )
        return _record(self.key, layout, sent).model_copy(update={"delta": delta})

    def clear(self, store: ObjectStore, layout: FileLayout) -> None:
        store.delete(*(keys.model_chunk(self.key, part) for part in range(len(layout.parts))))


def _record(key: str, layout: FileLayout, sent: Sequence[SentPart]) -> StoredFile:
    part_sha256 = [each.sha256 for each in sent]
    return StoredFile(
        path=layout.path.as_posix(),
        key=key,
        bytes=layout.total_bytes,
        sha256=sha256_of_parts(part_sha256),
        part_bytes=layout.part_bytes,
        part_sha256=part_sha256,
    )
