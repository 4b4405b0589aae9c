"""Drawing with many models: one pipeline skeleton per base model, weights copied in from a cache. No Ray in here.

One thread has the device: it picks the next batch, brings the batch's model into the live modules, and samples. Models
are fetched and pictures become files in other threads meanwhile.
"""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from booth.contract.serving import DrawRequest, ModelRef
from booth_service.diffusion.batch import Setting, Step, sample_batch
from booth_service.errors import EngineBusy, OutOfMemory, ServiceError
from booth_service.inference.batching import BatchLimits, Past, Queue, choose
from booth_service.inference.calls import Call
from booth_service.inference.models import Held, Models, name_of
from booth_service.inference.queues import Queues, Waiting
from booth_service.inference.rows import refuse_size, rows_of
from booth_service.inference.skeleton import Slots
from booth_service.inference.ticket import OnEvent, Ticket
from booth_service.inference.weights_cache import WeightsCache
from booth_service.settings import Settings
from booth_service.storage.s3 import ObjectStore

LOADS, ENCODERS = 4, 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """What an engine may take, each as the setting of nearly the same name says."""

    batch: BatchLimits
    age_limit_s: float = 10.0
    queue_pictures: int = 256
    model_cache_bytes: int = 4 * 2**30
    device_cache_bytes: int = 0
    bad_model_memory_s: float = 30.0

    @classmethod
    def from_settings(cls, config: Settings) -> "EngineLimits":
        """The operator's."""
        return cls(
            batch=BatchLimits(config.serving_batch_size, config.serving_batch_pixels, config.serving_fixed_batch),
            age_limit_s=config.serving_age_limit_s,
            queue_pictures=config.serving_queue_pictures,
            model_cache_bytes=config.model_cache_bytes,
            device_cache_bytes=config.device_cache_bytes,
            bad_model_memory_s=config.bad_model_memory_s,
        )


@dataclass(frozen=True)
class Batch:
    """Rows that are drawn together, padded to `places`."""

    held: Held
    setting: Setting
    rows: list[Waiting]
    places: int

    def calls(self) -> dict[Call, "Batch"]:
        """Each call with its rows of the batch, at the same padded size."""
        calls = dict.fromkeys(each.call for each in self.rows)
        return {call: replace(self, rows=[each for each in self.rows if each.call is call]) for call in calls}


@dataclass
class Tally:
    """What an engine has done since it began. A switch copied weights into live modules."""

    batches: int = 0
    rows: int = 0
    switches: int = 0
    loads: int = 0
    longest_batch_s: float = 0.0


class Engine:
    """Draws on one device. Requests may come from any thread; sampling happens one batch at a time."""

    def __init__(self, store: ObjectStore, device: str, limits: EngineLimits, scratch_dir: str | None = None) -> None:
        self.limits, self.tally = limits, Tally()
        self.models = Models(
            store,
            device,
            WeightsCache(limits.model_cache_bytes, patience_s=limits.age_limit_s / 2),
            Slots(limits.device_cache_bytes),
            bad_memory_s=limits.bad_model_memory_s,
            scratch_dir=scratch_dir,
        )
        self._queues = Queues()
        self._calls: set[Call] = set()
        self._preparing = 0
        self._drawing = 0
        self._loading: set[str] = set()
        self._past = Past()
        self._step_at: float | None = None
        self._is_closing = False
        self._changed = threading.Condition()
        self._loaders = ThreadPoolExecutor(LOADS, thread_name_prefix="engine-load")
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="engine-encode")
        self._device_thread = threading.Thread(target=self._run, name="engine-device", daemon=True)
        self._device_thread.start()

    @classmethod
    def from_settings(cls, config: Settings, store: ObjectStore, device: str) -> "Engine":
        """An engine within the operator's limits."""
        return cls(store, device, EngineLimits.from_settings(config), config.scratch_dir)

    def submit(self, request: DrawRequest, on_event: OnEvent | None = None) -> Ticket:
        """The request waits for its turn. Raises EngineBusy where too many do.

        The ticket's future raises StorageError or BadWeights where the model is absent or damaged, CannotDraw where
        what is asked cannot be drawn with it, DrawTimeout.
        """
        call = Call(request, on_event, model=name_of(request.model), since=time.monotonic(), encoders=self._encoders)
        if error := self.models.failure(call.model):
            call.fail(error)
            return call.ticket
        with self._changed:
            self._refuse_when_full(len(request.draws))
            self._calls.add(call)
            self._preparing += len(request.draws)
        call.ticket.future.add_done_callback(lambda _: self._ended(call))
        if request.image_base64 is None:
            self._enqueue(call)
        else:
            self._encoders.submit(self._enqueue, call)
        return call.ticket

    def warm(self, model: ModelRef) -> None:
        """The model's weights lie in host memory. Raises StorageError, BadWeights, BaseModelError."""
        self.models.bring(model)

    def forget(self, manifest_sha256: str) -> None:
        """No copy of the model is left, in cache or live pipeline, and none will be made.

        Waits for the pictures that are being drawn; calls that wait for others of it end with ObjectMissing.
        """
        self.models.forget(manifest_sha256)
        with self._changed:
            self._changed.notify_all()

    def held(self) -> list[str]:
        """The models of which a copy is here, by the SHA-256 of their manifests."""
        return self.models.held()

    def queued_pictures(self) -> int:
        """Pictures that wait or are being drawn."""
        with self._changed:
            return self._waiting() + self._drawing

    def stuck_s(self) -> float:
        """Seconds since the device last finished a denoising step of the batch it is at; 0.0 where it is idle.

        Infinite where nobody is left to draw.
        """
        at = self._step_at
        if not (self._device_thread.is_alive() or self._is_closing):
            return float("inf")
        return 0.0 if at is None else time.monotonic() - at

    def close(self, within_s: float = 0.0) -> None:
        """No thread of the engine runs any more. What is drawn within that time is; the rest ends with EngineBusy."""
        with self._changed:
            self._is_closing = True
            self._changed.wait_for(lambda: not self._calls, within_s)
            for call in list(self._calls):
                call.fail(EngineBusy("the engine is closing"))
            self._changed.notify_all()
        self._device_thread.join()
        self._loaders.shutdown(cancel_futures=True)
        self._encoders.shutdown()

    def _waiting(self) -> int:
        return self._preparing + len(self._queues)

    def _refuse_when_full(self, count: int) -> None:
        """A call of more pictures than may wait is taken where nobody else waits."""
        if self._is_closing:
            raise EngineBusy("the engine is closing")
        waiting, most = self._waiting(), self.limits.queue_pictures
        if waiting and waiting + count > most:
            raise EngineBusy(f"{waiting} pictures wait, and {most} may; try again a little later")

    def _enqueue(self, call: Call) -> None:
        """The call's rows wait, or it has ended with CannotDraw."""
        try:
            if (known := self.models.known(call.model)) is not None:
                refuse_size(call.request, known.skeleton)
            rows = rows_of(call.request)
        except ServiceError as error:
            call.fail(error)
            rows = []
        with self._changed:
            self._preparing -= len(call.request.draws)
            self._queues.add(call, rows)
            self.models.want(self._queues.models())
            self._changed.notify_all()

    def _ended(self, call: Call) -> None:
        with self._changed:
            self._calls.discard(call)
            self._changed.notify_all()

    def _run(self) -> None:
        """The device's thread."""
        while (batch := self._next_batch()) is not None:
            began = self._step_at = time.monotonic()
            try:
                self._draw(batch)
            finally:
                self.models.release(batch.held)
                self._step_at = None
                self._drawing = 0
            ended = time.monotonic()
            self.tally.longest_batch_s = max(self.tally.longest_batch_s, ended - began)
            recent = {name: at for name, at in self._past.served.items() if at > ended - 10 * self.limits.age_limit_s}
            batch_s = max(ended - began, 0.9 * self._past.batch_s)
            self._past = Past(ended, batch.places, batch_s, {**recent, batch.held.name: began})

    def _next_batch(self) -> Batch | None:
        """The next batch, when it is time for one; None when the engine is closed and nobody waits."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._clear(now)
                self._begin_loads()
                queues = list(self._queues.seen(self.models.standing))
                choice = choose(queues, self._past, self.limits.batch, self.limits.age_limit_s, now)
                if choice is not None and choice.at <= now:
                    if (batch := self._take(choice.queue, choice.rows)) is not None:
                        return batch
                    continue
                if self._is_closing and not self._calls:
                    return None
                wake = [*(call.deadline for call in self._calls), *([choice.at] if choice else [])]
                self._changed.wait(max(0.0, min(wake) - now) if wake else None)

    def _clear(self, now: float) -> None:
        """What is over waits no more; what has waited for too long is over."""
        for call in list(self._calls):
            call.expire(now)
        self._queues.drop_over()

    def _begin_loads(self) -> None:
        """Every model that rows wait for is at hand, or on its way."""
        wanted = self._queues.models()
        self.models.want(wanted)
        for name, model in wanted.items():
            if name not in self._loading and self.models.standing(name) is None:
                self._loading.add(name)
                self._loaders.submit(self._bring, name, model)

    def _bring(self, name: str, model: ModelRef) -> None:
        """The model is at hand, or its calls have ended with the reason; and those that it cannot draw."""
        try:
            self.models.bring(model)
            self.tally.loads += 1
        except Exception as error:
            failure = as_service_error(error, f"model {model.model_id} cannot be loaded")
            with self._changed:
                for call in [call for call in self._calls if call.model == name]:
                    call.fail(failure)
        with self._changed:
            self._loading.discard(name)
            self._changed.notify_all()

    def _take(self, queue: Queue, count: int) -> Batch | None:
        """The queue's first rows, with their model held; None where its weights have gone meanwhile."""
        held = self.models.hold(queue.model)
        if held is None:
            return None
        rows = self._queues.take(queue, count)
        self._drawing = count
        places = self.limits.batch.padded(sum(each.row.places for each in rows), queue.setting)
        return Batch(held, queue.setting, rows, places)

    def _draw(self, batch: Batch) -> None:
        """Every row of the batch is drawn, or its call has ended."""
        try:
            with self.models.device_lock:
                self.tally.switches += self.models.activate(batch.held)
                self._sample(batch)
        except Exception as error:
            failure = as_service_error(error, "drawing failed")
            for call in batch.calls():
                call.fail(failure)

    def _sample(self, batch: Batch) -> None:
        """Where a batch fails the rows of each call are drawn apart, so that what one asks for harms no other."""
        calls = batch.calls()
        try:
            for call in calls:
                refuse_size(call.request, batch.held.known.skeleton)
            self._sample_together(batch)
        except Exception as error:
            if len(calls) == 1:
                raise
            logger.warning("a batch of %d calls failed, each is drawn apart: %r", len(calls), error)
            for call, its in calls.items():
                try:
                    self._sample(its)
                except Exception as own_error:
                    call.fail(as_service_error(own_error, "drawing failed"))

    def _sample_together(self, batch: Batch) -> None:
        drawings = sample_batch(
            batch.held.known.skeleton.pipeline,
            [each.row for each in batch.rows],
            batch.setting,
            places=batch.places,
            on_step=lambda step: self._stepped(batch, step),
            image_prompt=batch.held.image_prompt,
        )
        if drawings is None:
            return
        self.tally.batches += 1
        self.tally.rows += len(batch.rows)
        for each, drawing in zip(batch.rows, drawings, strict=True):
            each.call.finished(each.place, drawing, batch.places)

    def _stepped(self, batch: Batch, step: Step) -> bool:
        """Callers hear of the step; False where nobody wants the batch any more."""
        now = self._step_at = time.monotonic()
        with self._changed:
            self._clear(now)
        wanted = [call for call in batch.calls() if not call.is_over]
        previews = step.preview() if any(call.wants_previews(step) for call in wanted) else []
        for call in wanted:
            rows = [row for row, each in enumerate(batch.rows) if each.call is call]
            shown = [previews[row] for row in rows] if call.wants_previews(step) else []
            call.stepped([batch.rows[row].place for row in rows], step, shown)
        return bool(wanted)


def as_service_error(error: Exception, what: str) -> ServiceError:
    """The error as callers get it."""
    if isinstance(error, ServiceError):
        return error
    logger.error("%s", what, exc_info=error)
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(f"{what}: the device is out of memory; lower BOOTH_SERVING_BATCH_PIXELS ({error})")
    return ServiceError(f"{what}: {error!r}")
