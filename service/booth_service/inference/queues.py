"""Rows that wait to be drawn, by model and setting."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from booth.contract.serving import ModelRef
from booth_service.diffusion.batch import Row, Setting
from booth_service.inference.batching import Queue, Standing
from booth_service.inference.calls import Call
from booth_service.inference.rows import setting_of


@dataclass(frozen=True)
class Waiting:
    """Draw `place` of a call."""

    call: Call
    place: int
    row: Row


class Queues:
    """Not thread-safe: its owner has a lock. No queue is empty."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, Setting], deque[Waiting]] = {}

    def __len__(self) -> int:
        """Rows that wait, of calls that are not over."""
        return sum(not each.call.is_over for queue in self._queues.values() for each in queue)

    def add(self, call: Call, rows: Sequence[Row]) -> None:
        """The call's rows, in the order of its draws, wait."""
        for place, row in enumerate(rows):
            key = call.model, setting_of(call.request, row)
            self._queues.setdefault(key, deque()).append(Waiting(call, place, row))

    def take(self, queue: Queue, count: int) -> list[Waiting]:
        """The first `count` rows of a queue wait no more."""
        rows = self._queues[queue.model, queue.setting]
        taken = [rows.popleft() for _ in range(count)]
        if not rows:
            del self._queues[queue.model, queue.setting]
        return taken

    def drop_over(self) -> None:
        """No row of a call that is over waits."""
        for key, queue in list(self._queues.items()):
            kept = deque(each for each in queue if not each.call.is_over)
            if kept:
                self._queues[key] = kept
            else:
                del self._queues[key]

    def models(self) -> dict[str, ModelRef]:
        """The models that rows wait for, by name, the one of the oldest row first."""
        heads = sorted((queue[0].call for queue in self._queues.values()), key=lambda call: call.since)
        return {call.model: call.request.model for call in heads}

    def seen(self, standing: Callable[[str], Standing | None]) -> Iterator[Queue]:
        """The queues of models that are at hand, as `batching.choose` looks at them."""
        for (model, setting), queue in self._queues.items():
            if (near := standing(model)) is not None:
                since = [each.call.since for each in queue]
                yield Queue(model, setting, near, since, [each.row.places for each in queue])
