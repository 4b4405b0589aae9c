"""A device that draws by `batching.choose` on a clock of its own: who waited how long, in which batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from booth_service.diffusion.batch import Setting
from booth_service.inference.batching import BatchLimits, Past, Queue, Standing, choose

SETTING = Setting(guidance_scale=5, num_inference_steps=25, width=512, height=512)


@dataclass(frozen=True)
class Arrival:
    """A row of a model that comes at a time, with the places that it takes."""

    at: float
    model: str
    places: int = 1
    setting: Setting = SETTING


@dataclass(frozen=True)
class DrawnBatch:
    """What was drawn together, beginning at a time."""

    at: float
    model: str
    rows: list[Arrival]
    is_switch: bool

    @property
    def places(self) -> int:
        return sum(row.places for row in self.rows)


@dataclass
class Device:
    """`first_s` is what a batch takes at all, `row_s` what each place adds, `switch_s` what another model costs."""

    limits: BatchLimits
    age_limit_s: float = 10.0
    first_s: float = 0.5
    row_s: float = 0.1
    switch_s: float = 0.05
    batches: list[DrawnBatch] = field(default_factory=list)

    def batch_s(self, places: int) -> float:
        return self.first_s + self.row_s * places + self.switch_s

    @property
    def longest_batch_s(self) -> float:
        return self.batch_s(self.limits.size)

    def run(self, arrivals: Sequence[Arrival]) -> list[DrawnBatch]:
        """Draw until nothing waits."""
        coming = sorted(arrivals, key=lambda row: row.at)
        waiting: list[Arrival] = []
        now, live, past = 0.0, "", Past()
        while coming or waiting:
            while coming and coming[0].at <= now:
                waiting.append(coming.pop(0))
            choice = choose(queues(waiting, live), past, self.limits, self.age_limit_s, now)
            if choice is None or choice.at > now:
                events = [row.at for row in coming[:1]] + ([choice.at] if choice else [])
                now = min(events)
                continue
            same = [row for row in waiting if (row.model, row.setting) == (choice.queue.model, choice.queue.setting)]
            rows = same[: choice.rows]
            batch = DrawnBatch(now, choice.queue.model, rows, choice.queue.model != live)
            self.batches.append(batch)
            drawn = set(map(id, rows))
            waiting = [row for row in waiting if id(row) not in drawn]
            took = self.first_s + self.row_s * batch.places + self.switch_s * batch.is_switch
            past = Past(now + took, batch.places, max(took, 0.9 * past.batch_s), {**past.served, batch.model: now})
            now, live = now + took, batch.model
        return self.batches

    def waits(self, model_prefix: str = "") -> list[float]:
        """Seconds until its batch began, of every row."""
        return [b.at - row.at for b in self.batches if b.model.startswith(model_prefix) for row in b.rows]


def queues(waiting: Sequence[Arrival], live: str) -> list[Queue]:
    """The rows as the engine shows them to `choose`."""
    grouped: dict[tuple[str, Setting], list[Arrival]] = {}
    for row in waiting:
        grouped.setdefault((row.model, row.setting), []).append(row)
    return [
        queue([row.at for row in rows], model, live, [row.places for row in rows], setting)
        for (model, setting), rows in grouped.items()
    ]


def queue(
    since: Sequence[float], model: str = "a", live: str = "", places: Sequence[int] = (), setting: Setting = SETTING
) -> Queue:
    """Rows of one model that wait since these times."""
    standing = Standing.LIVE if model == live else Standing.HOST
    return Queue(model, setting, standing, list(since), list(places) or [1] * len(since))
