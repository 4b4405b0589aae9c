"""How many pictures all actors of a pool have drawn, told to the driver while they draw."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

POLL_S = 1.0


class _Count:
    """Lives in a Ray actor that holds no device."""

    def __init__(self) -> None:
        self.drawn = 0

    def add(self, count: int) -> None:
        self.drawn += count

    def total(self) -> int:
        return self.drawn


class Counter:
    """What an actor of the pool calls with the number of pictures it has just drawn; picklable."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, count: int) -> None:
        self._actor.add.remote(count)


@contextmanager
def counting(on_pictures: Callable[[int], None]) -> Iterator[Counter]:
    """A counter for actors. While the block lasts, and once at its end, what they count is told to `on_pictures`."""
    actor: Any = ray.remote(num_cpus=0)(_Count).remote()
    over = threading.Event()
    told = 0

    def tell() -> None:
        nonlocal told
        total: int = ray.get(actor.total.remote())
        if total > told:
            on_pictures(total - told)
        told = total

    def follow() -> None:
        while not over.wait(POLL_S):
            tell()

    follower = threading.Thread(target=follow, name="picture count", daemon=True)
    follower.start()
    try:
        yield Counter(actor)
    finally:
        over.set()
        follower.join()
        tell()
        ray.kill(actor)
