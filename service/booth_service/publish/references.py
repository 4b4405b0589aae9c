"""Which files are worth being stored as their difference to what the untrained base would give."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from booth.contract.attempts import StoredFile
from booth.contract.digests import part_ranges
from booth_service.publish.assembly import Assembly, padded
from booth_service.publish.export import Pieces
from booth_service.publish.gang import Gang
from booth_service.storage.base_model import reference_views
from booth_service.storage.delta import encode
from booth_service.storage.s3 import ObjectStore

MOST_SHARE = 0.5  # of the whole bytes; above, what is saved is not worth decoding
NUM_SAMPLES, SAMPLE_BYTES = 64, 64 * 2**10  # of a file: many and small, for its layers move differently


@dataclass(frozen=True)
class Reference:
    """A stored reference and its bytes on this node."""

    file: StoredFile
    view: memoryview


def references_of(
    files: Sequence[Pieces], stored: Sequence[StoredFile], store: ObjectStore, scratch_dir: str | None
) -> list[Reference | None]:
    """Each file's reference, where it has one that is as long. Raises StorageError."""
    by_path = {reference.path: reference for reference in stored}
    fitting: list[StoredFile | None] = []
    for file in files:
        found = by_path.get(file.layout.path.as_posix())
        fitting.append(found if found is not None and found.bytes == file.layout.total_bytes else None)
    views = reference_views(store, [each for each in fitting if each is not None], scratch_dir)
    return [None if each is None else Reference(each, views[each.sha256]) for each in fitting]


def worthwhile(files: Sequence[Pieces], references: Sequence[Reference | None], gang: Gang) -> list[Reference | None]:
    """The references of the files whose difference takes at most MOST_SHARE of their bytes, judged by samples.

    All ranks take their turns at sampling and get the same answer. Raises on all what failed on one.
    """
    if not any(references):
        return list(references)
    assembly = Assembly(files, gang, SAMPLE_BYTES)
    stored_bytes, sampled_bytes = [0] * len(files), [1] * len(files)
    for number, (file, reference) in enumerate(zip(files, references, strict=True)):
        if reference is None:
            continue
        ranges = sample_ranges(file.layout.total_bytes)
        sampled_bytes[number] = sum(length for _, length in ranges)
        for turn, (start, length) in enumerate(ranges):
            owner = turn % gang.ranks
            buffer = torch.empty(padded(length), dtype=torch.uint8) if owner == gang.rank else None
            assembly.fill(owner, number, start, length, buffer)
            if buffer is not None:
                body = buffer.numpy().data[:length]
                with assembly.noted():
                    stored_bytes[number] += len(encode(body, reference.view[start : start + length]))
    gang.all_or_none(lambda: _raise(assembly.error))
    of_all = gang.sum(*stored_bytes)
    return [
        reference if reference is not None and stored <= MOST_SHARE * sampled else None
        for reference, stored, sampled in zip(references, of_all, sampled_bytes, strict=True)
    ]


def sample_ranges(total_bytes: int) -> list[tuple[int, int]]:
    """(start, length) of what is looked at of a file: all of a small one; starts are multiples of 8."""
    if total_bytes <= NUM_SAMPLES * SAMPLE_BYTES:
        return part_ranges(total_bytes, SAMPLE_BYTES)
    last = total_bytes - SAMPLE_BYTES
    return [(last * number // (NUM_SAMPLES - 1) // 8 * 8, SAMPLE_BYTES) for number in range(NUM_SAMPLES)]


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
