"""The users' routes for pictures: in one answer, or as server-sent events while they are drawn."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from booth.contract.event_stream import MEDIA_TYPE, encoded
from booth.contract.models import GenerateAnswer, GenerateEvent, GenerateRequest
from booth.contract.serving import DrawEvent, DrawRequest
from booth_service.control import drawing, picture_answers, pictures
from booth_service.control.auth import Caller, Here
from booth_service.control.connection import EventStream, while_connected
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, problem_record, unavailable
from booth_service.control.sharing import require_serving
from booth_service.errors import StorageError

Resolve = Callable[[GenerateRequest], DrawRequest]
"""Called in a thread: who asks for what is checked, and every value decided."""

router = APIRouter(prefix="/v1")


@router.post("/models/{model_id}/generate", response_model=GenerateAnswer)
async def generate(model_id: str, asked: GenerateRequest, tenant: Caller, plane: Here, request: Request) -> Response:
    """Pictures by the tenant's model; with `Accept: text/event-stream` a GenerateEvent for each step and picture."""
    return await _answered(plane, tenant, request, asked, partial(pictures.of_model, plane, tenant, model_id))


@router.post("/base-models/{name}/generate", response_model=GenerateAnswer)
async def generate_with_base(
    name: str, asked: GenerateRequest, tenant: Caller, plane: Here, request: Request
) -> Response:
    """Pictures by a base model, for comparison."""
    return await _answered(plane, tenant, request, asked, partial(pictures.of_base_model, plane, name))


async def drawn(
    plane: Plane, tenant_id: str, request: Request, asked: GenerateRequest, resolve: Resolve
) -> GenerateAnswer:
    """The pictures, unless the client goes away first, which ends the drawing."""
    with plane.calls.one(plane.settings.serving_calls):
        wanted = await _wanted(plane, tenant_id, asked, resolve)
        answer = await while_connected(request, drawing.draw(plane, wanted))
        return await picture_answers.answer_of(plane, tenant_id, wanted, answer, linked=_is_linked(asked))


async def _answered(
    plane: Plane, tenant_id: str, request: Request, asked: GenerateRequest, resolve: Resolve
) -> Response:
    if MEDIA_TYPE in request.headers.get("Accept", ""):
        return await _streamed(plane, tenant_id, request, asked, resolve)
    answer = await drawn(plane, tenant_id, request, asked, resolve)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _streamed(
    plane: Plane, tenant_id: str, request: Request, asked: GenerateRequest, resolve: Resolve
) -> EventStream:
    async with AsyncExitStack() as stack:
        stack.enter_context(plane.calls.one(plane.settings.serving_calls))
        wanted = await _wanted(plane, tenant_id, asked, resolve)
        first, rest = await while_connected(request, _opened(stack, plane, wanted))
        events = _relayed(plane, tenant_id, request, wanted, first, rest, _is_linked(asked))
        stream = EventStream(events, stack.pop_all())
    return stream


async def _wanted(plane: Plane, tenant_id: str, asked: GenerateRequest, resolve: Resolve) -> DrawRequest:
    return await pictures.with_start(await run_in_threadpool(_resolved, plane, tenant_id, asked, resolve), asked)


def _resolved(plane: Plane, tenant_id: str, asked: GenerateRequest, resolve: Resolve) -> DrawRequest:
    wanted = resolve(asked)
    with plane.database.read() as session:
        require_serving(session, tenant_id)
    return wanted


def _is_linked(asked: GenerateRequest) -> bool:
    return asked.response_format == "link"


async def _opened(
    stack: AsyncExitStack, plane: Plane, wanted: DrawRequest
) -> tuple[DrawEvent, AsyncIterator[DrawEvent]]:
    """The first event and the others: what is refused at once is answered with its own status."""
    events = await stack.enter_async_context(drawing.streamed(plane, wanted))
    return await anext(events), events


async def _relayed(
    plane: Plane,
    tenant_id: str,
    request: Request,
    wanted: DrawRequest,
    first: DrawEvent,
    rest: AsyncIterator[DrawEvent],
    linked: bool,
) -> AsyncGenerator[bytes, None]:
    try:
        yield encoded(await picture_answers.event_of(plane, tenant_id, wanted, first, linked=linked))
        async for event in rest:
            yield encoded(await picture_answers.event_of(plane, tenant_id, wanted, event, linked=linked))
    except ProblemError as error:
        yield _refused(error, request)
    except StorageError:
        yield _refused(unavailable("The object store does not answer as it should."), request)


def _refused(error: ProblemError, request: Request) -> bytes:
    problem = problem_record(error, str(request.scope["state"]["request_id"]))
    return encoded(GenerateEvent(kind="refused", problem=problem))
