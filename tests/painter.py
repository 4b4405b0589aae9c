"""A stand-in for the Serve application, a real ASGI one: it draws small pictures at once, refuses or breaks off as
told, and remembers what it was asked and what was cancelled."""

import asyncio
import base64
import io
import threading
from dataclasses import replace

import httpx2
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from booth.contract.event_stream import encoded
from booth.contract.serving import SECRET_HEADER, STREAM_PATH, DrawAnswer, DrawEvent, Drawn, DrawRefusal, DrawRequest

STEPS = 3


def png(seed: int) -> bytes:
    """A picture that differs by seed."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, 7, 7)).save(out, "PNG")
    return out.getvalue()


def png_base64(seed: int) -> str:
    return base64.b64encode(png(seed)).decode()


class Painter:
    """Answers with `refusal` and `status` where there is one; waits for ever where it `hangs`; leaves out `missing`
    pictures; ends a stream after `breaks_after` events."""

    def __init__(self, refusal: DrawRefusal | None = None, status: int = 200, **headers: str) -> None:
        self.asked: list[DrawRequest] = []
        self.secrets: list[str] = []
        self.refusal, self.status, self.headers = refusal, status, headers
        self.hangs = False
        self.missing = 0
        self.refuses_late = False
        self.breaks_after: int | None = None
        self.begun, self.cancelled = threading.Event(), threading.Event()
        self.app = Starlette(
            routes=[Route("/", self.draw, methods=["POST"]), Route(STREAM_PATH, self.stream, methods=["POST"])]
        )

    async def draw(self, request: Request) -> Response:
        wanted = await self._noted(request)
        if self.hangs:
            await self._until_gone(request)
        if self.status != 200:
            return self._refused()
        answer = DrawAnswer(pictures=[self._drawn(wanted, place) for place in range(len(wanted.draws) - self.missing)])
        return Response(answer.model_dump_json(), media_type="application/json")

    async def stream(self, request: Request) -> Response:
        wanted = await self._noted(request)
        if self.status != 200 and not self.refuses_late:
            return self._refused()
        return StreamingResponse(self._events(request, wanted), media_type="text/event-stream")

    async def _events(self, request: Request, wanted: DrawRequest):
        events = list(self._of(wanted))
        for number, event in enumerate(events):
            if number == self.breaks_after:
                return
            yield encoded(event)
        if self.hangs:
            await self._until_gone(request)

    def _of(self, wanted: DrawRequest):
        places = list(range(len(wanted.draws)))
        for step in range(1, STEPS + 1):
            due = wanted.preview_interval_steps and step % wanted.preview_interval_steps == 0
            previews = [png_base64(wanted.draws[place].seed) for place in places] if due else []
            yield DrawEvent(kind="step", step=step, total_steps=STEPS, places=places, previews=previews)
        if self.hangs:
            return
        if self.refusal is not None:
            yield DrawEvent(kind="refused", refusal=self.refusal)
            return
        for place in places:
            yield DrawEvent(kind="picture", places=[place], picture=self._drawn(wanted, place))
        yield DrawEvent(kind="done")

    def _drawn(self, wanted: DrawRequest, place: int) -> Drawn:
        draw = wanted.draws[place]
        source = None if draw.edit is None else png_base64(draw.seed + 100)
        return Drawn(png_base64=png_base64(draw.seed), source_png_base64=source, batch_size=4)

    async def _noted(self, request: Request) -> DrawRequest:
        wanted = DrawRequest.model_validate_json(await request.body())
        self.asked.append(wanted)
        self.secrets.append(request.headers[SECRET_HEADER])
        self.begun.set()
        return wanted

    async def _until_gone(self, request: Request) -> None:
        try:
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)
        finally:
            self.cancelled.set()

    def _refused(self) -> Response:
        body = self.refusal.model_dump_json() if self.refusal else "no words of ours"
        return Response(body, self.status, self.headers, "application/json")


def served_by(plane, painter):
    """The same control plane in front of this Serve."""
    return replace(plane, serve=httpx2.AsyncClient(transport=httpx2.ASGITransport(app=painter.app)))
