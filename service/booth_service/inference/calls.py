"""One request in the engine: what it was told, what it still lacks, and how it ends."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

from PIL.Image import Image

from booth.contract.serving import Draw, DrawAnswer, DrawEvent, Drawn, DrawRequest
from booth_service.diffusion.batch import Drawing, Step
from booth_service.errors import DrawTimeout, ServiceError
from booth_service.inference.png import png_base64, settings_of
from booth_service.inference.ticket import OnEvent, Ticket

logger = logging.getLogger(__name__)


class Call:
    """Thread-safe. Pictures become files in the `encoders`; events reach the caller in the order they happened."""

    def __init__(
        self, request: DrawRequest, on_event: OnEvent | None, *, model: str, since: float, encoders: Executor
    ) -> None:
        self.request, self.model, self.since = request, model, since
        self.ticket = Ticket()
        self.deadline = since + request.timeout_s
        self._on_event, self._encoders = on_event, encoders
        self._drawn: dict[int, Drawn] = {}
        self._events: deque[Future[DrawEvent]] = deque()
        self._has_ended = False
        self._handing_over, self._ending = threading.Lock(), threading.Lock()

    @property
    def is_over(self) -> bool:
        """True where nothing more is to be drawn for it: it has ended, or whoever asked does not want it any more."""
        return self._has_ended or self.ticket.is_cancelled or self.ticket.future.cancelled()

    def expire(self, now: float) -> None:
        """It ends with DrawTimeout where its time is up."""
        if now >= self.deadline and not self.is_over:
            count, wanted = len(self._drawn), len(self.request.draws)
            self.fail(DrawTimeout(f"{count} of {wanted} pictures were drawn within {self.request.timeout_s:g} s"))

    def wants_previews(self, step: Step) -> bool:
        """True where pictures of this step are asked for; the last step's are the pictures themselves."""
        interval = self.request.preview_interval_steps
        return self._on_event is not None and interval > 0 and step.done % interval == 0 and step.done < step.total

    def stepped(self, places: Sequence[int], step: Step, previews: Sequence[Image]) -> None:
        """A denoising step is done for these of its draws; one preview for each, or none."""
        if self._on_event is None:
            return
        event = DrawEvent(kind="step", step=step.done, total_steps=step.total, places=list(places))
        if previews:
            self._say(self._encoders.submit(self._with_previews, event, previews))
        else:
            said: Future[DrawEvent] = Future()
            said.set_result(event)
            self._say(said)

    def finished(self, place: int, drawing: Drawing, batch_size: int) -> None:
        """One of its draws is drawn."""
        self._say(self._encoders.submit(self._picture, place, drawing, batch_size))

    def fail(self, error: ServiceError) -> None:
        """It ends with this error, unless it has ended already."""
        self._end(lambda future: future.set_exception(error))

    def _picture(self, place: int, drawing: Drawing, batch_size: int) -> DrawEvent:
        draw = self.request.draws[place]
        drawn = Drawn(png_base64=self._png(drawing.image, draw), batch_size=batch_size)
        if drawing.source is not None and draw.edit is not None:
            source = draw.model_copy(update={"prompt": draw.edit.source_prompt, "edit": None})
            drawn = drawn.model_copy(update={"source_png_base64": self._png(drawing.source, source)})
        return DrawEvent(kind="picture", places=[place], picture=drawn)

    def _with_previews(self, event: DrawEvent, previews: Sequence[Image]) -> DrawEvent:
        draws = [self.request.draws[place] for place in event.places]
        pngs = [self._png(image, draw) for image, draw in zip(previews, draws, strict=True)]
        return event.model_copy(update={"previews": pngs})

    def _png(self, image: Image, draw: Draw) -> str:
        settings = settings_of(self.request, draw)
        model = self.request.model.model_id
        return png_base64(image, prompt=draw.prompt, seed=draw.seed, model=model, settings=settings)

    def _say(self, event: "Future[DrawEvent]") -> None:
        with self._handing_over:
            self._events.append(event)
        event.add_done_callback(lambda _: self._flush())

    def _flush(self) -> None:
        """What is ready and has nothing before it reaches the caller; after the last picture the call ends."""
        try:
            with self._handing_over:
                while self._events and self._events[0].done():
                    self._tell(self._events.popleft().result())
        except Exception as error:
            logger.exception("a picture of model %s could not be handed over", self.request.model.model_id)
            self.fail(ServiceError(f"a picture could not be handed over: {error!r}"))
        if len(self._drawn) == len(self.request.draws):
            pictures = [self._drawn[place] for place in range(len(self._drawn))]
            self._end(lambda future: future.set_result(DrawAnswer(pictures=pictures)))

    def _tell(self, event: DrawEvent) -> None:
        if self._on_event is not None and not self.is_over:
            self._on_event(event)
        if event.picture is not None:
            self._drawn[event.places[0]] = event.picture

    def _end(self, end: Callable[["Future[DrawAnswer]"], None]) -> None:
        with self._ending:
            if self._has_ended:
                return
            self._has_ended = True
        if self.ticket.future.set_running_or_notify_cancel():
            end(self.ticket.future)
