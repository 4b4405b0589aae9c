"""Drawn pictures as their owner gets them: inline, or stored for a day or two behind links."""

import asyncio
import base64

from fastapi.concurrency import run_in_threadpool

from booth.contract.models import GenerateAnswer, GenerateEvent, Picture
from booth.contract.serving import DrawAnswer, DrawEvent, Drawn, DrawRequest
from booth_service.control.plane import Plane
from booth_service.control.records import new_id
from booth_service.storage import keys


async def answer_of(
    plane: Plane, tenant_id: str, request: DrawRequest, drawn: DrawAnswer, *, linked: bool
) -> GenerateAnswer:
    """The whole answer. With `linked` its pictures are stored, and it has links in their place."""
    made = (
        picture_of(plane, tenant_id, request, place, each, linked=linked) for place, each in enumerate(drawn.pictures)
    )
    return settings_of(request, await asyncio.gather(*made))


async def event_of(
    plane: Plane, tenant_id: str, request: DrawRequest, event: DrawEvent, *, linked: bool
) -> GenerateEvent:
    """An event of Serve's that is no refusal, as the user gets it."""
    picture = None
    if event.picture is not None:
        picture = await picture_of(plane, tenant_id, request, event.places[0], event.picture, linked=linked)
    return GenerateEvent(
        kind=event.kind,
        step=event.step,
        total_steps=event.total_steps,
        places=event.places,
        previews=event.previews,
        picture=picture,
        answer=settings_of(request, []) if event.kind == "done" else None,
    )


async def picture_of(
    plane: Plane, tenant_id: str, request: DrawRequest, place: int, drawn: Drawn, *, linked: bool
) -> Picture:
    """The picture of the request's draw at this place, with what it takes to make it again."""
    draw = request.draws[place]
    said = Picture(prompt=draw.prompt, seed=draw.seed, batch_size=drawn.batch_size)
    if not linked:
        return said.model_copy(update={"png_base64": drawn.png_base64, "source_png_base64": drawn.source_png_base64})
    update = {"url": await _stored(plane, tenant_id, drawn.png_base64)}
    if drawn.source_png_base64 is not None:
        update["source_url"] = await _stored(plane, tenant_id, drawn.source_png_base64)
    return said.model_copy(update=update)


def settings_of(request: DrawRequest, pictures: list[Picture]) -> GenerateAnswer:
    """The answer round these pictures."""
    return GenerateAnswer(
        pictures=pictures,
        guidance_scale=request.guidance_scale,
        num_inference_steps=request.num_inference_steps,
        width=request.width,
        height=request.height,
        scheduler=request.scheduler,
    )


async def _stored(plane: Plane, tenant_id: str, png_base64: str) -> str:
    """A link to the picture, which is stored now."""
    key = keys.picture(tenant_id, plane.now().date(), new_id("pic"))
    await run_in_threadpool(plane.store.put, key, base64.b64decode(png_base64), "image/png")
    return plane.store.download_link(key, plane.settings.download_link_s)
