"""Calls to Serve for pictures: its answers, its events, and what its refusals and silences mean to a user."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import httpx2
from pydantic import ValidationError

from booth.contract.event_stream import EventReader
from booth.contract.problems import FieldProblem
from booth.contract.serving import (
    STREAM_PATH,
    DrawAnswer,
    DrawEvent,
    DrawRefusal,
    DrawRequest,
    ModelRef,
)
from booth.contract.states import FailureReason
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, invalid, unavailable
from booth_service.control.serving import headers, url

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""Serve ends a call by itself when its time is over; it is waited for so much longer."""
BUSY_RETRY_S, DAMAGED_RETRY_S = 5, 30


async def draw(plane: Plane, request: DrawRequest) -> DrawAnswer:
    """The pictures, in the order of the draws. Raises ProblemError as Serve refuses or is away."""
    with _reached():
        response = await plane.serve.post(url(plane, "/"), **_sent(plane, request))
    if response.status_code != 200:
        raise _refused(response, request)
    try:
        answer = DrawAnswer.model_validate_json(response.content)
    except ValidationError as error:
        raise _unreadable() from error
    if len(answer.pictures) != len(request.draws):
        raise _unreadable()
    return answer


@asynccontextmanager
async def streamed(plane: Plane, request: DrawRequest) -> AsyncIterator[AsyncIterator[DrawEvent]]:
    """The events, the last one "done"; leaving the block ends the call, and Serve draws no more for it.

    Raises ProblemError, from entering the block or from the events, as Serve refuses, is away or breaks off.
    """
    with _reached():
        async with plane.serve.stream("POST", url(plane, STREAM_PATH), **_sent(plane, request)) as response:
            if response.status_code != 200:
                await response.aread()
                raise _refused(response, request)
            async with aclosing(_events(response, request)) as events:
                yield events


def problem_of(refusal: DrawRefusal, request: DrawRequest, retry_after_s: int = BUSY_RETRY_S) -> ProblemError:
    """A refusal in words for the one who asked for the pictures."""
    match refusal.reason:
        case "invalid":
            field = "edit" if request.draws[0].edit is not None else "image" if request.image_base64 else "prompts"
            return invalid([FieldProblem(field=field, value="", message=refusal.detail)])
        case "busy":
            return _busy(retry_after_s)
        case "timeout":
            return _timeout(request.timeout_s)
        case "paused":
            remedy = "Try again when it is over."
            return ProblemError("paused", "Inference is paused.", refusal.detail, remedy, retry_after_s)
        case FailureReason.BAD_MODEL:
            return _damaged(request.model)
        case FailureReason.STORAGE:
            detail = "Its weights did not come whole from the object store."
            problem = unavailable(f"The {_named(request.model)} cannot be loaded now.", detail, DAMAGED_RETRY_S)
            problem.remedy = f"Try again in a minute. If it stays so, its stored files are damaged: {_instead(request)}"
            return problem
        case FailureReason.OUT_OF_MEMORY:
            detail = "The device's memory does not hold them."
            remedy = "Ask for smaller pictures, or for fewer in one call."
            return ProblemError("unavailable", "The pictures cannot be drawn.", detail, remedy, DAMAGED_RETRY_S)
    return ProblemError("internal", "Inference failed.", f"Reason: {refusal.reason}.", "Report the request id.")


def _sent(plane: Plane, request: DrawRequest) -> dict[str, Any]:
    timeout = httpx2.Timeout(request.timeout_s + GRACE_S, connect=5)
    sent = headers(plane, request.model.routing_key)
    return {"content": request.model_dump_json(), "headers": sent, "timeout": timeout}


async def _events(response: httpx2.Response, request: DrawRequest) -> AsyncGenerator[DrawEvent, None]:
    reader = EventReader()
    with _reached():
        async for piece in response.aiter_bytes():
            for line in reader.feed(piece):
                event = _event(line, request)
                yield event
                if event.kind == "done":
                    return
    raise unavailable("Inference broke off.", "Its replica may have been stopped.")


def _event(line: bytes, request: DrawRequest) -> DrawEvent:
    """An event of a call that goes on or is done; raises what a refusal says."""
    try:
        event = DrawEvent.model_validate_json(line)
    except ValidationError as error:
        raise _unreadable() from error
    if event.kind == "refused":
        refusal = event.refusal or DrawRefusal(reason=FailureReason.INTERNAL, detail="")
        _log(refusal, request)
        raise problem_of(refusal, request)
    return event


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except httpx2.TimeoutException as error:
        raise unavailable("Inference did not answer in time.", type(error).__name__, retry_after_s=30) from error
    except httpx2.TransportError as error:
        raise unavailable("Inference is not reachable.", type(error).__name__) from error


def _refused(response: httpx2.Response, request: DrawRequest) -> ProblemError:
    wait = response.headers.get("Retry-After", "")
    retry_after_s = int(wait) if wait.isdigit() else BUSY_RETRY_S
    status = response.status_code
    try:
        refusal = DrawRefusal.model_validate_json(response.content)
    except ValidationError:  # Ray Serve's own words, or a proxy's
        logger.warning("inference answered %d for model %s", status, request.model.model_id)
        if status == 429:
            return _busy(retry_after_s)
        if status == 504:
            return _timeout(request.timeout_s)
        if status in (404, 502, 503):  # 404: Serve is up, the application is not deployed yet
            return unavailable("Inference is not available.", f"It answered {status}.", retry_after_s)
        return ProblemError("internal", "Inference failed.", f"It answered {status}.", "Report the request id.")
    _log(refusal, request)
    return problem_of(refusal, request, retry_after_s)


def _log(refusal: DrawRefusal, request: DrawRequest) -> None:
    """Refusals of what was asked quote prompts, which belong in no log; the others name stored objects."""
    detail = "" if refusal.reason in ("invalid", "busy", "timeout") else refusal.detail[:500]
    logger.warning("inference refused model %s: %s %s", request.model.model_id, refusal.reason, detail)


def _busy(retry_after_s: int) -> ProblemError:
    detail = "As many pictures wait as it takes."
    return ProblemError("busy", "Inference is busy.", detail, "Try again shortly.", retry_after_s)


def _timeout(timeout_s: float) -> ProblemError:
    detail = f"{timeout_s:g} s are given to a call."
    remedy = "Ask for fewer or smaller pictures or fewer steps, or try again when less is drawn."
    return ProblemError("timeout", "The pictures were not drawn in time.", detail, remedy)


def _damaged(model: ModelRef) -> ProblemError:
    detail = "Its stored weights are damaged; other models are not affected."
    remedy = "Train it again, or tell the operator." if model.manifest_key else "Tell the operator."
    return ProblemError("internal", f"The {_named(model)} cannot be loaded.", detail, remedy)


def _instead(request: DrawRequest) -> str:
    return "train it again, or tell the operator." if request.model.manifest_key else "tell the operator."


def _named(model: ModelRef) -> str:
    return f"model {model.model_id}" if model.manifest_key else f"base model {model.base_model!r}"


def _unreadable() -> ProblemError:
    return unavailable("Inference gave an answer that cannot be read.")
