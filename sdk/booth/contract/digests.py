"""The digest of a stored file: over all of its bytes, or over the digests of its parts.

With parts, whoever writes a file from several processes hashes it in parallel, and whoever reads it checks each part
as it arrives, in any order.
"""

import hashlib
from collections.abc import Sequence


def sha256_of_parts(part_sha256: Sequence[str]) -> str:
    """The digest of a file in parts: SHA-256 over its parts' SHA-256 digests, 32 bytes each, in order. All in hex."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in part_sha256)).hexdigest()


def part_ranges(total_bytes: int, part_bytes: int) -> list[tuple[int, int]]:
    """(start, length) of every part of a file: all of `part_bytes` but the last."""
    return [(start, min(part_bytes, total_bytes - start)) for start in range(0, total_bytes, part_bytes)]


class Check:
    """Takes a file's bytes in order and knows whether they are the recorded ones.

    `part_sha256` empty means that `sha256` is of the whole content.
    """

    def __init__(self, sha256: str, part_bytes: int, part_sha256: Sequence[str]) -> None:
        self._sha256, self._part_bytes, self._part_sha256 = sha256, part_bytes, list(part_sha256)
        self._digest, self._in_part = hashlib.sha256(), 0
        self._seen: list[str] = []

    def update(self, data: bytes) -> None:
        """The next bytes of the file."""
        if not self._part_sha256:
            self._digest.update(data)
            return
        view = memoryview(data)
        while view:
            piece = view[: self._part_bytes - self._in_part]
            self._digest.update(piece)
            self._in_part += len(piece)
            view = view[len(piece) :]
            if self._in_part == self._part_bytes:
                self._close_part()

    def is_right(self) -> bool:
        """True where all bytes have come and are the recorded ones."""
        if not self._part_sha256:
            return self._digest.hexdigest() == self._sha256
        if self._in_part:
            self._close_part()
        return self._seen == self._part_sha256 and sha256_of_parts(self._seen) == self._sha256

    def _close_part(self) -> None:
        self._seen.append(self._digest.hexdigest())
        self._digest, self._in_part = hashlib.sha256(), 0
