"""Files of trained weights into the object store, from the memory of all ranks: no gather, no file, no single writer.

Every rank owns a contiguous run of every file's parts and sends them from a few buffers of part size. Where ranks hold
only fragments, they put each part together in its owner's buffer, all ranks in the same order, a part of every owner in
turn, so that all owners send at once.
"""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from booth.contract.attempts import StoredFile
from booth_service.errors import StorageError
from booth_service.publish.assembly import Assembly, padded
from booth_service.publish.export import Pieces
from booth_service.publish.gang import Gang
from booth_service.publish.layout import own_parts
from booth_service.publish.references import Reference
from booth_service.publish.targets import Difference, SentPart, Target, Whole
from booth_service.storage.s3 import ObjectStore, Upload

PARTS_UNDER_WAY = 8  # of all ranks together: more of them slow a small store down (SeaweedFS: 3 times its CPU at 32)
LEAST_UNDER_WAY = 2  # of one rank
Say = Callable[[int, int], None]  # bytes stored by all ranks so far, of how many


def upload_files(
    files: Sequence[Pieces],
    keys: Sequence[str],
    store: ObjectStore,
    gang: Gang,
    say: Say,
    references: Sequence[Reference | None] | None = None,
) -> list[StoredFile]:
    """All files are stored, under `keys`; every rank calls this and gets the records.

    `references` has one for each file that is to be stored as its difference, else None. Raises on all ranks what
    failed on one (StorageError, BadWeights); then no file is there and no upload is left, unless this very process is
    killed.
    """
    references = [None] * len(files) if references is None else references
    begun: dict[int, Upload] = {}
    targets: list[Target] = []
    done: list[StoredFile] = []
    try:
        gang.all_or_none(lambda: _begin(keys, references, store, begun) if gang.rank == 0 else None)
        uploads = gang.everyone(begun)[0]
        targets += [
            Whole(uploads[number]) if reference is None else Difference(keys[number], reference)
            for number, reference in enumerate(references)
        ]
        sender = gang.all_or_none(lambda: _Sender(files, targets, store, gang, say))
        shares = gang.everyone(gang.all_or_none(sender.run))
        gang.all_or_none(lambda: done.extend(_finished(files, targets, shares, store)) if gang.rank == 0 else None)
        return gang.everyone(done)[0]
    except BaseException:
        if gang.rank == 0:
            _clear_away(files, targets or [Whole(upload) for upload in begun.values()], store)
        raise


def threads_of_rank(ranks: int) -> int:
    """How many parts a rank has on their way, and in memory."""
    return max(LEAST_UNDER_WAY, PARTS_UNDER_WAY // ranks)


def _begin(
    keys: Sequence[str], references: Sequence[Reference | None], store: ObjectStore, begun: dict[int, Upload]
) -> None:
    for number, (key, reference) in enumerate(zip(keys, references, strict=True)):
        if reference is None:
            begun[number] = store.begin_upload(key)


def _finished(
    files: Sequence[Pieces], targets: Sequence[Target], shares: Sequence[Sequence[list[SentPart]]], store: ObjectStore
) -> list[StoredFile]:
    done = []
    for number, (file, target) in enumerate(zip(files, targets, strict=True)):
        sent = sorted((each for share in shares for each in share[number]), key=lambda each: each.part)
        done.append(target.finish(store, file.layout, sent))
    return done


def _clear_away(files: Sequence[Pieces], targets: Sequence[Target], store: ObjectStore) -> None:
    """Nothing of a failed publication is left, if the store can be reached; else the control plane's sweep does it."""
    try:
        for file, target in zip(files, targets, strict=False):
            target.clear(store, file.layout)
    except StorageError as error:
        print(f"what is stored of a failed publication is left for the sweep: {error}", flush=True)


class _Sender:
    """One rank's share: the parts that it owns of every file, in order."""

    def __init__(
        self, files: Sequence[Pieces], targets: Sequence[Target], store: ObjectStore, gang: Gang, say: Say
    ) -> None:
        self._files, self._targets, self._store, self._gang, self._say = files, targets, store, gang, say
        self._total_bytes = sum(file.layout.total_bytes for file in files)
        self._shares = [self._share(rank) for rank in range(gang.ranks)]
        largest = max(min(file.layout.part_bytes, file.layout.total_bytes) for file in files)
        self._assembly = Assembly(files, gang, largest)
        self._buffers: queue.Queue[Tensor] = queue.Queue()
        self._threads = threads_of_rank(gang.ranks)
        for _ in range(min(self._threads, len(self._shares[gang.rank]))):
            self._buffers.put(torch.empty(padded(largest), dtype=torch.uint8))
        self._sent: list[tuple[int, Future[SentPart | None]]] = []
        self._stored_bytes = 0

    def run(self) -> list[list[SentPart]]:
        """The stored parts of each file. Another rank's failure ends it early; this one's is raised when all is still.

        Whatever happens here, all ranks go through the same collectives.
        """
        with ThreadPoolExecutor(self._threads, thread_name_prefix="part") as pool:
            for turn in range(max(map(len, self._shares))):
                if self._has_anyone_failed():
                    break
                for owner, share in enumerate(self._shares):
                    if turn < len(share):
                        self._one_part(pool, owner, *share[turn])
        self._has_anyone_failed()
        if self._assembly.error:
            raise self._assembly.error
        parts: list[list[SentPart]] = [[] for _ in self._files]
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
        with self._assembly.lock:
            failed, stored_bytes = self._assembly.error is not None, self._stored_bytes
        failures, all_bytes = self._gang.sum(int(failed), stored_bytes)
        if self._gang.rank == 0:
            self._say(all_bytes, self._total_bytes)
        return failures > 0

    def _one_part(self, pool: ThreadPoolExecutor, owner: int, number: int, part: int) -> None:
        """The part is on its way, where this rank owns it; where another does, its bytes have gone there."""
        start, length = self._files[number].layout.parts[part]
        buffer = self._buffers.get() if owner == self._gang.rank else None
        self._assembly.fill(owner, number, start, length, buffer)
        if buffer is not None:
            self._sent.append((number, pool.submit(self._send, buffer, number, part, start, length)))

    def _send(self, buffer: Tensor, number: int, part: int, start: int, length: int) -> SentPart | None:
        """None where something has failed already: then it would be in vain."""
        try:
            if self._assembly.error is None:
                with self._assembly.noted():
                    body = buffer.numpy().data[:length]
                    sent = self._targets[number].send(self._store, part, start, body)
                    with self._assembly.lock:
                        self._stored_bytes += length
                    return sent
            return None
        finally:
            self._buffers.put(buffer)
