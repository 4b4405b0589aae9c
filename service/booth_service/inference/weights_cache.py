"""Weights by name in a limited number of bytes: what is in use is never dropped, room is made before a load."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from booth_service.errors import ObjectMissing
from booth_service.inference.weights import Weights


@dataclass
class Entry:
    """Weights and how many use them now."""

    weights: Weights
    bytes: int
    holders: int = 0


class Shelf:
    """Weights by name, the least recently used first. Not thread-safe: its owner has a lock.

    `bytes` counts what was put there and what is on its way.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self.entries: OrderedDict[str, Entry] = OrderedDict()

    def find(self, name: str) -> Entry | None:
        """The entry, which now is the most recently used; None where there is none."""
        entry = self.entries.get(name)
        if entry is not None:
            self.entries.move_to_end(name)
        return entry

    def make_room(self, size_bytes: int, spared: Collection[str] = (), beside: Collection[str] = ()) -> bool:
        """Room for so many bytes, taken at once, made by dropping the least recently used.

        False, and nothing is dropped, where what is in use, spared or needed `beside` leaves too little. What does not
        fit even beside those alone is let in where nothing else would stay: too small a limit is better than no model.
        """
        kept = {name for name, entry in self.entries.items() if entry.holders or name in spared or name in beside}
        loose = [name for name in self.entries if name not in kept]
        staying = self.bytes - sum(self.entries[name].bytes for name in loose)
        needed = sum(self.entries[name].bytes for name in kept.intersection(beside))
        if staying + size_bytes > self.capacity_bytes and staying > needed:
            return False
        for name in loose:
            if self.bytes + size_bytes <= self.capacity_bytes:
                break
            self.drop(name)
        self.bytes += size_bytes
        return True

    def put(self, name: str, weights: Weights, size_bytes: int) -> None:
        """The weights are there, in room that was made for them."""
        self.entries[name] = Entry(weights, size_bytes)

    def drop(self, name: str) -> None:
        """They are not there any more."""
        if (entry := self.entries.pop(name, None)) is not None:
            self.bytes -= entry.bytes


@dataclass(frozen=True)
class Load:
    """How to get weights that are missing: `bytes` is what `read` will take."""

    name: str
    bytes: int
    read: Callable[[], Weights]


class WeightsCache:
    """Weights in host memory. Thread-safe; several loads at a time, one for each name.

    Names that are `wanted` are spared by loads that have not waited for `patience_s` yet.
    """

    def __init__(
        self, capacity_bytes: int, patience_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shelf = Shelf(capacity_bytes)
        self._patience_s, self._clock = patience_s, clock
        self._wanted: frozenset[str] = frozenset()
        self._under_way: set[str] = set()
        self._forgotten: set[str] = set()
        self._changed = threading.Condition()

    @property
    def bytes(self) -> int:
        """Memory that is taken, loads under way included."""
        return self._shelf.bytes

    def __len__(self) -> int:
        return len(self._shelf.entries)

    def __contains__(self, name: str) -> bool:
        return name in self._shelf.entries

    def names(self) -> list[str]:
        """What is there, the least recently used first."""
        with self._changed:
            return list(self._shelf.entries)

    def want(self, names: Collection[str]) -> None:
        """These are wanted, in place of those before."""
        with self._changed:
            self._wanted = frozenset(names)
            self._changed.notify_all()

    def touch(self, names: Iterable[str]) -> None:
        """Those that are there were used now, if in another place than this."""
        with self._changed:
            for name in names:
                self._shelf.find(name)

    def hold(self, names: Sequence[str]) -> list[Weights] | None:
        """All of them, which stay until they are released; None, and nothing is held, where one is not there."""
        with self._changed:
            entries = [self._shelf.find(name) for name in names]
            if not all(entries) or self._forgotten.intersection(names):
                return None
            for entry in entries:
                entry.holders += 1  # type: ignore[union-attr]
            return [entry.weights for entry in entries if entry]

    def release(self, names: Sequence[str]) -> None:
        """They are not used any more by who held them."""
        with self._changed:
            for name in names:
                self._shelf.entries[name].holders -= 1
            self._changed.notify_all()

    def load(self, loads: Sequence[Load]) -> None:
        """All of these are there, or were a moment ago.

        Room for all that is missing is made before anything is read; where others use all the memory, this waits.
        What another thread is loading is waited for. Raises what `read` raises; ObjectMissing for what was forgotten.
        """
        mine = self._claim(loads)
        try:
            while mine:
                self._arrived(mine[0], mine[0].read())
                mine.pop(0)  # from now on another thread may be loading it anew
        finally:
            with self._changed:
                for each in mine:
                    self._gave_up(each)
                self._changed.notify_all()

    def forget(self, name: str) -> None:
        """The weights of this name are gone, and those on their way will not be kept. Waits for who uses them."""
        with self._changed:
            self._forgotten.add(name)
            self._changed.wait_for(lambda: not (entry := self._shelf.entries.get(name)) or not entry.holders)
            self._shelf.drop(name)
            self._changed.notify_all()

    def is_forgotten(self, name: str) -> bool:
        return name in self._forgotten

    def _claim(self, loads: Sequence[Load]) -> list[Load]:
        """The loads that are this thread's to make, with room for all of them."""
        own = {each.name for each in loads}
        began = self._clock()
        with self._changed:
            while True:
                self._refuse_forgotten(own)
                missing = [each for each in loads if each.name not in self._shelf.entries]
                if not missing:
                    return []
                waited = self._clock() - began
                spared = self._wanted if waited < self._patience_s else frozenset()
                is_free = not any(each.name in self._under_way for each in missing)
                if is_free and self._shelf.make_room(sum(each.bytes for each in missing), spared, own):
                    self._under_way.update(each.name for each in missing)
                    return missing
                self._changed.wait(max(0.01, self._patience_s - waited) if waited < self._patience_s else None)

    def _arrived(self, load: Load, weights: Weights) -> None:
        with self._changed:
            self._refuse_forgotten({load.name})
            self._under_way.remove(load.name)
            self._shelf.put(load.name, weights, load.bytes)
            self._changed.notify_all()

    def _gave_up(self, load: Load) -> None:
        self._under_way.remove(load.name)
        self._shelf.bytes -= load.bytes

    def _refuse_forgotten(self, names: Collection[str]) -> None:
        if gone := self._forgotten.intersection(names):
            raise ObjectMissing(f"model {', '.join(gone)} was deleted")
