"""Which rows are drawn next: decided from who waits and what is resident, by nothing else. No threads, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from booth_service.diffusion.batch import Setting

GATHER_S = 0.015
GATHER_SHARE = 0.02  # of what a batch takes: so little is lost where nobody else comes


@dataclass(frozen=True)
class BatchLimits:
    """`size` rows and `pixels` pixels of one batch; `is_fixed`: every batch is padded to the largest size."""

    size: int
    pixels: int
    is_fixed: bool = False

    def room(self, setting: Setting) -> int:
        """Places of the largest batch of such pictures, 1 or more: one that has too many pixels is drawn alone."""
        return max(1, min(self.size, self.pixels // (setting.width * setting.height)))

    def padded(self, places: int, setting: Setting) -> int:
        """Places that are drawn where `places` are taken: the next of 1, 2, 4, 8 ... up to the largest batch.

        An edit takes two places even where one picture fills a batch.
        """
        room = self.room(setting)
        if self.is_fixed:
            return room * -(-places // room)
        return places if places >= room else min(room, 1 << (places - 1).bit_length())


class Standing(IntEnum):
    """Where a model's weights are, the nearest last."""

    HOST = 1
    DEVICE = 2
    LIVE = 3


@dataclass(frozen=True)
class Queue:
    """Rows that may share a batch, the oldest first: since when each waits, and the places that it takes."""

    model: str
    setting: Setting
    standing: Standing
    since: Sequence[float]
    places: Sequence[int]


@dataclass(frozen=True)
class Past:
    """What was drawn before: when the last batch ended and its places, what one takes, when each model last had one."""

    ended: float = float("-inf")
    places: int = 0
    batch_s: float = 0.0
    served: Mapping[str, float] = field(default_factory=dict)

    def last_served(self, model: str) -> float:
        return self.served.get(model, float("-inf"))


@dataclass(frozen=True)
class Choice:
    """The first `rows` rows of a queue, now or, while others may still join them, at `at`."""

    queue: Queue
    rows: int
    at: float


def choose(queues: Sequence[Queue], past: Past, limits: BatchLimits, age_limit_s: float, now: float) -> Choice | None:
    """The next batch of these queues, none of which is empty; None where there are none.

    The fullest batch comes first, the live model's as if one more row waited. But where a row would wait longer than
    the age limit, were all queues before it drawn first, those come first, and of them the model that was not served
    for longest: so a flood ages behind its own rows alone.
    """
    if not queues:
        return None
    if late := late_ones(queues, past.batch_s, age_limit_s, now):
        queue = min(late, key=lambda each: (past.last_served(each.model), each.since[0]))
        return Choice(queue, rows_that_fit(queue, limits)[0], now)
    queue = max(queues, key=lambda each: (fullness(each, limits), each.standing, -each.since[0]))
    rows, is_full = rows_that_fit(queue, limits)
    return Choice(queue, rows, now if is_full else gathered_at(queues, past))


def late_ones(queues: Sequence[Queue], batch_s: float, age_limit_s: float, now: float) -> list[Queue]:
    """Those whose oldest row would wait longer than the limit if one batch of each older queue were drawn before."""
    by_age = sorted(queues, key=lambda queue: queue.since[0])
    return [queue for turn, queue in enumerate(by_age, start=1) if now + turn * batch_s >= queue.since[0] + age_limit_s]


def fullness(queue: Queue, limits: BatchLimits) -> float:
    """The share of a batch that its rows fill, and a row more for the live model, which costs no switch."""
    room = limits.room(queue.setting)
    return min(1.0, sum(queue.places) / room) + (queue.standing is Standing.LIVE) / room


def rows_that_fit(queue: Queue, limits: BatchLimits) -> tuple[int, bool]:
    """How many of its rows, the oldest first, one batch takes: 1 or more; and whether the next would not fit."""
    room, taken = limits.room(queue.setting), 0
    for rows, places in enumerate(queue.places):
        if rows and taken + places > room:
            return rows, True
        taken += places
    return len(queue.places), taken >= room


def gathered_at(queues: Sequence[Queue], past: Past) -> float:
    """When a batch that is not full begins: after a pause in which those who had the last pictures may come back, or,
    on an idle device, in which a second row may come, by far shorter than a batch."""
    waiting = sum(sum(queue.places) for queue in queues)
    oldest = min(queue.since[0] for queue in queues)
    alone = oldest + min(GATHER_S, GATHER_SHARE * past.batch_s)
    return max(alone, past.ended + GATHER_S) if waiting < past.places else alone
