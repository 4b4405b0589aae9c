"""Files of trained weights into the object store, from the memory of all ranks: no gather, no file, no single writer.

Every rank owns a contiguous run of every file's parts and sends them from a few buffers of part size. Where ranks hold
only fragments, they put each part together in its owner's buffer, all ranks in the same order, a part of every owner in
turn, so that all owners send at once.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from booth.contract.attempts import StoredFile
from booth.contract.digests import sha256_of_parts
from booth_service.errors import StorageError
from booth_service.publish.export import Pieces
from booth_service.publish.gang import Gang
from booth_service.publish.layout import own_parts
from booth_service.storage.s3 import ObjectStore, StoredPart, Upload

UPLOAD_THREADS = 8  # of one rank; as many parts are on their way, and in memory
Say = Callable[[int, int], None]  # bytes stored by all ranks so far, of how many


def upload_files(
    files: Sequence[Pieces], keys: Sequence[str], store: ObjectStore, gang: Gang, say: Say
) -> list[StoredFile]:
    """All files are stored, under `keys`; every rank calls this and gets the records.

    Raises on all ranks what failed on one (StorageError, BadWeights); then no file is there and no upload is left,
    unless this very process is killed.
    """
    begun: list[Upload] = []
    done: list[StoredFile] = []
    try:
        gang.all_or_none(lambda: _begin(keys, store, begun) if gang.rank == 0 else None)
        uploads = gang.everyone(begun)[0]
        sender = gang.all_or_none(lambda: _Sender(files, uploads, store, gang, say))
        sent = gang.everyone(gang.all_or_none(sender.run))
        parts = [[part for share in sent for part in share[number]] for number in range(len(files))]
        gang.all_or_none(lambda: _complete(files, uploads, parts, store, done) if gang.rank == 0 else None)
        return gang.everyone(done)[0]
    except BaseException:
        _clear_away(begun, done, store)
        raise


def _begin(keys: Sequence[str], store: ObjectStore, begun: list[Upload]) -> None:
    for key in keys:
        begun.append(store.begin_upload(key))


def _complete(
    files: Sequence[Pieces],
    uploads: Sequence[Upload],
    parts: Sequence[Sequence[StoredPart]],
    store: ObjectStore,
    done: list[StoredFile],
) -> None:
    for file, upload, stored in zip(files, uploads, parts, strict=True):
        layout, in_order = file.layout, sorted(stored, key=lambda part: part.number)
        part_sha256 = [part.sha256 for part in in_order]
        store.complete(upload, in_order, layout.total_bytes)
        done.append(
            StoredFile(
                path=layout.path.as_posix(),
                key=upload.key,
                bytes=layout.total_bytes,
                sha256=sha256_of_parts(part_sha256),
                part_bytes=layout.part_bytes,
                part_sha256=part_sha256,
            )
        )


def _clear_away(begun: Sequence[Upload], done: Sequence[StoredFile], store: ObjectStore) -> None:
    """Nothing of a failed publication is left, if the store can be reached; else the control plane's sweep does it."""
    try:
        for upload in begun:
            store.abort(upload)
        store.delete(*(file.key for file in done))
    except StorageError as error:
        print(f"what is stored of a failed publication is left for the sweep: {error}", flush=True)


class _Sender:
    """One rank's share: the parts that it owns of every file, in order."""

    def __init__(
        self, files: Sequence[Pieces], uploads: Sequence[Upload], store: ObjectStore, gang: Gang, say: Say
    ) -> None:
        self._files, self._uploads, self._store, self._gang, self._say = files, uploads, store, gang, say
        self._total_bytes = sum(file.layout.total_bytes for file in files)
        self._is_local = [file.is_local for file in files]
        self._shares = [self._share(rank) for rank in range(gang.ranks)]
        largest = max(min(file.layout.part_bytes, file.layout.total_bytes) for file in files)
        size = largest + -largest % 4
        self._buffers: queue.Queue[Tensor] = queue.Queue()
        for _ in range(min(UPLOAD_THREADS, len(self._shares[gang.rank]))):
            self._buffers.put(torch.empty(size, dtype=torch.uint8))
        needs_scratch = gang.device.type != "cpu" or not all(self._is_local)
        self._scratch = torch.empty(size if needs_scratch else 0, dtype=torch.uint8, device=gang.device)
        self._sent: list[tuple[int, Future[StoredPart | None]]] = []
        self._error: Exception | None = None
        self._stored_bytes, self._lock = 0, threading.Lock()

    def run(self) -> list[list[StoredPart]]:
        """The stored parts of each file. Another rank's failure ends it early; this one's is raised when all is still.

        Whatever happens here, all ranks go through the same collectives.
        """
        with ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="part") as pool:
            for turn in range(max(map(len, self._shares))):
                if self._has_anyone_failed():
                    break
                for owner, share in enumerate(self._shares):
                    if turn < len(share):
                        self._one_part(pool, owner, *share[turn])
        self._has_anyone_failed()
        if self._error:
            raise self._error
        parts: list[list[StoredPart]] = [[] for _ in self._files]
        for number, future in self._sent:
            if (part := future.result()) is not None:  # it always is: nothing has failed
                parts[number].append(part)
        return parts

    def _share(self, rank: int) -> list[tuple[int, int]]:
        """(file, part) of all that a rank owns."""
        return [
            (number, part)
            for number, file in enumerate(self._files)
            for part in own_parts(len(file.layout.parts), rank, self._gang.ranks)
        ]

    def _has_anyone_failed(self) -> bool:
        """All ranks get the same answer, and rank 0 says how far all are."""
        with self._lock:
            failed, stored_bytes = self._error is not None, self._stored_bytes
        failures, all_bytes = self._gang.sum(int(failed), stored_bytes)
        if self._gang.rank == 0:
            self._say(all_bytes, self._total_bytes)
        return failures > 0

    def _one_part(self, pool: ThreadPoolExecutor, owner: int, number: int, part: int) -> None:
        """The part is on its way, where this rank owns it; where another does, its bytes have gone there."""
        is_mine, is_local = owner == self._gang.rank, self._is_local[number]
        if is_local and not is_mine:
            return
        file = self._files[number]
        start, length = file.layout.parts[part]
        buffer = self._buffers.get() if is_mine else None
        place = buffer if buffer is not None and self._gang.device.type == "cpu" else self._scratch
        place = place[: length + -length % 4]
        with self._noted():
            if not is_local:
                place.zero_()
            file.fill_trained(place[:length], start, from_fragments=not is_local)
        if not is_local:
            self._gang.merge(place, owner)
        if buffer is None:
            return
        with self._noted():
            file.fill_rest(place[:length], start)
            if place.device != buffer.device:
                buffer[:length].copy_(place[:length])
        self._sent.append((number, pool.submit(self._send, buffer, length, number, part)))

    def _send(self, buffer: Tensor, length: int, number: int, part: int) -> StoredPart | None:
        """None where something has failed already: then it would be in vain."""
        try:
            if self._error is None:
                with self._noted():
                    body = buffer.numpy().data[:length]
                    digest = hashlib.sha256(body).hexdigest()
                    stored = self._store.put_part(self._uploads[number], part + 1, body, digest)
                    with self._lock:
                        self._stored_bytes += length
                    return stored
            return None
        finally:
            self._buffers.put(buffer)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """The first error is kept and ends nothing here: the others count on this rank in the next collective."""
        try:
            yield
        except Exception as error:
            with self._lock:
                self._error = self._error or error
