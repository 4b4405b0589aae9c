"""A model file that the service stores as its difference to the base model, put together here."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from booth import reference_cache
from booth.contract.delta import CODING, DeltaBroken, decode
from booth.contract.digests import part_ranges, sha256_of_parts
from booth.contract.models import ChunkLink, ModelDelta, ModelFile
from booth.errors import TransferError
from booth.transport import Transport

PARALLEL_CHUNKS = 4


def put_together(transport: Transport, file: ModelFile, target: Path, have: set[int]) -> None:
    """The file lies at `target` with the recorded content.

    `have` are the parts that an earlier try put there; those that come now are added. Raises TransferError, naming what
    did not arrive as it was published.
    """
    delta = _checked(file)
    ranges = part_ranges(file.bytes, file.part_bytes)
    lock = threading.Lock()
    with reference_cache.opened(transport, delta.reference) as reference, _opened(target, file.bytes) as out:

        def one(part: int) -> None:
            start, length = ranges[part]
            body = _decoded(transport, file, part, delta.chunks[part], reference[start : start + length])
            with lock:
                out.seek(start)
                out.write(body)
                have.add(part)

        with ThreadPoolExecutor(PARALLEL_CHUNKS) as pool:
            list(pool.map(one, [part for part in range(len(ranges)) if part not in have]))


def _checked(file: ModelFile) -> ModelDelta:
    """Raise TransferError where this client cannot read the difference, or its record contradicts itself."""
    delta = file.delta
    assert delta is not None
    if delta.coding != CODING:
        raise TransferError(
            f"{file.path} is stored in the format {delta.coding!r}, and this client knows {CODING!r}. Update booth."
        )
    parts = len(part_ranges(file.bytes, max(1, file.part_bytes)))
    is_whole = len(delta.chunks) == len(file.part_sha256) == parts and delta.reference.bytes == file.bytes
    if not is_whole or sha256_of_parts(file.part_sha256) != file.sha256:
        raise TransferError(f"The service's record of {file.path} contradicts itself. Nothing was fetched.")
    return delta


def _decoded(transport: Transport, file: ModelFile, part: int, chunk: ChunkLink, reference: bytes) -> bytes:
    try:
        body = decode(_fetched(transport, f"part {part} of {file.path}", chunk), reference)
    except DeltaBroken as error:
        raise TransferError(f"part {part} of {file.path}: {error}.") from error
    if hashlib.sha256(body).hexdigest() != file.part_sha256[part]:
        raise TransferError(f"part {part} of {file.path} was put together to other bytes than were published.")
    return body


def _fetched(transport: Transport, what: str, chunk: ChunkLink) -> bytes:
    stored = bytearray()
    with transport.get_link(chunk.url) as pieces:
        for piece in pieces:
            stored += piece
            if len(stored) > chunk.bytes:
                break
    if len(stored) != chunk.bytes or hashlib.sha256(stored).hexdigest() != chunk.sha256:
        raise TransferError(f"{what} arrived with other bytes than were published (SHA-256). Try again.")
    return bytes(stored)


def _opened(target: Path, total_bytes: int) -> BinaryIO:
    """The file for writing anywhere in it, as it was left; new ones have their whole length."""
    if not target.exists():
        with target.open("wb") as new:
            new.truncate(total_bytes)
    return target.open("r+b")
