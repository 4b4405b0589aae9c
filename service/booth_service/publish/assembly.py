"""Ranges of published files, put together in one rank's memory from what all ranks hold."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from booth_service.publish.export import Pieces
from booth_service.publish.gang import Gang


class Assembly:
    """All ranks ask for the same ranges in the same order, of at most `most_bytes`.

    The first error is kept in `error` and ends nothing here: the others count on this rank in the next collective.
    """

    def __init__(self, files: Sequence[Pieces], gang: Gang, most_bytes: int) -> None:
        self._files, self._gang = files, gang
        self.is_local = [file.is_local for file in files]
        needs_scratch = gang.device.type != "cpu" or not all(self.is_local)
        self._scratch = torch.empty(padded(most_bytes) if needs_scratch else 0, dtype=torch.uint8, device=gang.device)
        self.error: Exception | None = None
        self.lock = threading.Lock()

    def fill(self, owner: int, number: int, start: int, length: int, buffer: Tensor | None) -> None:
        """Bytes [start, start + length) of a file are in the owner's `buffer`, uint8 of `padded(length)` or more.

        Other ranks have none. Unless `error` is there.
        """
        is_local, file = self.is_local[number], self._files[number]
        if is_local and buffer is None:
            return
        place = buffer if buffer is not None and self._gang.device.type == "cpu" else self._scratch
        place = place[: padded(length)]
        with self.noted():
            if not is_local:
                place.zero_()
            file.fill_trained(place[:length], start, from_fragments=not is_local)
        if not is_local:
            self._gang.merge(place, owner)
        if buffer is None:
            return
        with self.noted():
            file.fill_rest(place[:length], start)
            if place.device != buffer.device:
                buffer[:length].copy_(place[:length])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """An error in the block is kept, where it is the first. From any thread."""
        try:
            yield
        except Exception as error:
            with self.lock:
                self.error = self.error or error


def padded(length: int) -> int:
    """The multiple of 4 bytes that ranks exchange for so many."""
    return length + -length % 4
