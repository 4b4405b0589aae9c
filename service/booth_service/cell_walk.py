"""A walk over the cells of a group: whichever waits is claimed and run by a worker that is free, until all are over.

Nothing here is remembered beyond the process: what a cell needs next, the control plane says with each claim.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar

import httpx2

from booth.contract.groups import CELLS_PHASE, ClaimedCell, GroupBrief
from booth.contract.jobs import Progress
from booth.contract.states import FailureReason
from booth_service.beats import Line, Pulse, RunLine
from booth_service.errors import AttemptEnded, ServiceError

TICK_S = 1.0
LOOK_INTERVAL_S = 10.0
MOST_CLAIMS = 20  # that are tried at a time while cells wait to be tried again
UNWANTED_GRACE_S = 30.0  # a cell that was asked to stop hears of it with its next beat and ends within a step

Answer = TypeVar("Answer")


class Worker(Protocol):
    """A process with one device that runs one cell at a time."""

    def start(self) -> Future[object]:
        """Done once it has its device."""
        ...

    def run(self, job_id: str, attempt: int) -> Future[object]:
        """Done once the attempt is over and has said so; fails where the process died."""
        ...

    def end(self) -> None:
        """The process is gone, whatever it does."""
        ...


@dataclass
class Held:
    """A cell that a worker runs."""

    job_id: str
    attempt: int
    fence: int
    unwanted_since: float | None = None


@dataclass
class Slot:
    """A place for a worker. Without `future` the worker is idle, without `worker` there is none now."""

    worker: Worker | None = None
    future: Future[object] | None = None
    held: Held | None = None

    @property
    def is_idle(self) -> bool:
        return self.worker is not None and self.future is None


class Walk:
    """The walk of one attempt of a group. `places` workers at most, made by `make_worker` as they are needed."""

    def __init__(
        self, brief: GroupBrief, line: RunLine, pulse: Pulse, make_worker: Callable[[], Worker], places: int
    ) -> None:
        self._line, self._pulse, self._make_worker = line, pulse, make_worker
        self._waiting = deque(cell.job_id for cell in brief.cells if not cell.status.is_final)
        self._total = len(brief.cells)
        self._over = self._at_first = self._total - len(self._waiting)
        self._slots = [Slot() for _ in range(max(1, min(places, len(self._waiting))))]
        self._untold: list[tuple[Held, FailureReason, str]] = []
        self._began = self._looked_at = time.monotonic()

    def to_the_end(self) -> None:
        """Every cell is over. Raises AttemptEnded where nobody wants the group any more."""
        try:
            self._say()
            while self._over < self._total:
                self._pulse.check()
                self._round()
        finally:
            for slot in self._slots:
                _dismiss(slot)

    def _round(self) -> None:
        """One look at every worker, or as long as none has anything to tell."""
        for slot in self._slots:
            self._take_back(slot)
            if slot.is_idle:
                self._hand_out(slot)
            if slot.worker is None and self._waiting:
                slot.worker = self._make_worker()
                slot.future = slot.worker.start()
            elif slot.is_idle and not self._waiting:
                _dismiss(slot)  # others may have use for its device
        self._untold = [each for each in self._untold if not self._tell(*each)]
        self._look()
        futures = [slot.future for slot in self._slots if slot.future is not None]
        is_full = all(slot.future is not None or not self._waiting for slot in self._slots)
        if futures:
            wait(futures, timeout=TICK_S, return_when=FIRST_COMPLETED)
        if not futures or not is_full:
            time.sleep(TICK_S)  # cells wait to be tried again, or the control plane is away

    def _take_back(self, slot: Slot) -> None:
        """A worker that is done is idle; one that died is replaced, and its cell's attempt has ended."""
        if slot.future is None or not slot.future.done():
            return
        error = slot.future.exception()
        if error is None:
            slot.future = None
            if slot.held is not None:
                self._waiting.appendleft(slot.held.job_id)  # whether it is over, its next claim says
                slot.held = None
            return
        print(f"a worker died: {error}", flush=True)
        if slot.held is not None:
            is_memory = "OutOfMemory" in type(error).__name__
            reason = FailureReason.OUT_OF_MEMORY if is_memory else FailureReason.WORKER_DIED
            self._untold.append((slot.held, reason, f"{type(error).__name__}: {error}"))
        _dismiss(slot)
        time.sleep(TICK_S)  # what kills workers at their start would do so without a pause

    def _hand_out(self, slot: Slot) -> None:
        """The idle worker runs the next cell that wants to be run, where one does."""
        assert slot.worker is not None
        for _ in range(min(MOST_CLAIMS, len(self._waiting))):
            job_id = self._waiting.popleft()
            claimed = self._claimed(job_id)
            if claimed is None or (claimed.attempt is None and not claimed.status.is_final):
                self._waiting.append(job_id)
                if claimed is None:
                    return
            elif claimed.attempt is None:
                self._over += 1
                print(f"{job_id} is {claimed.status.value}; {self._over} of {self._total} are over", flush=True)
                self._say()
            else:
                slot.held = Held(job_id, claimed.attempt, claimed.fence)
                slot.future = slot.worker.run(job_id, claimed.attempt)
                return

    def _claimed(self, job_id: str) -> ClaimedCell | None:
        return _unless_away(lambda: self._line.claim_cell(job_id))

    def _look(self) -> None:
        """Workers that run what nobody wants any more, and do not listen, are ended."""
        now = time.monotonic()
        busy = [slot for slot in self._slots if slot.held is not None]
        if not busy or now - self._looked_at < LOOK_INTERVAL_S:
            return
        self._looked_at = now
        brief = _unless_away(self._line.group_brief)
        if brief is None:
            return
        unwanted = {cell.job_id for cell in brief.cells if cell.is_unwanted}
        for slot in busy:
            assert slot.held is not None
            if slot.held.job_id not in unwanted:
                slot.held.unwanted_since = None
                continue
            slot.held.unwanted_since = slot.held.unwanted_since or now
            if now - slot.held.unwanted_since > UNWANTED_GRACE_S and slot.worker is not None:
                slot.worker.end()

    def _tell(self, held: Held, reason: FailureReason, detail: str) -> bool:
        """The cell's attempt has ended, and the cell waits again; False where the control plane is away."""
        line = Line(self._line.api_url, self._line.stack_secret, held.job_id, held.attempt)

        def tell() -> bool:
            line.failed(held.fence, reason, detail)
            return True

        try:
            if not _unless_away(tell):
                return False
        except AttemptEnded:
            pass  # it had said so itself
        self._waiting.append(held.job_id)
        return True

    def _say(self) -> None:
        done = self._over - self._at_first
        pace = done / (time.monotonic() - self._began) if done else None
        eta_s = (self._total - self._over) / pace if pace else None
        self._pulse.say(Progress(phase=CELLS_PHASE, step=self._over, total_steps=self._total, eta_s=eta_s))


def places_of(devices: int, serving_gpus: float, at_once: int | None, *, use_gpu: bool) -> int:
    """How many cells run side by side: one on each device that serving does not hold, or fewer where asked."""
    free = int(devices - serving_gpus) if use_gpu else devices
    return max(1, min(free, at_once or free))


def _dismiss(slot: Slot) -> None:
    if slot.worker is not None:
        slot.worker.end()
    slot.worker = slot.future = slot.held = None


def _unless_away(call: Callable[[], Answer]) -> Answer | None:
    """What the control plane answers; None where it is away, which is waited for: the pulse knows the end."""
    try:
        return call()
    except AttemptEnded:
        raise
    except (ServiceError, httpx2.HTTPError) as error:
        print(f"the control plane does not answer: {error}", flush=True)
        return None
