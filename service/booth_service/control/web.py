"""The FastAPI application round the routes: every error leaves it as problem details with a request id."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from booth.contract.problems import FieldProblem, field_problems
from booth_service.control import (
    admission,
    api,
    attempt_api,
    evaluation_api,
    generation_api,
    group_api,
    openai_api,
    openai_errors,
    picture_api,
    run_attempt_api,
    serving_api,
)
from booth_service.control.middleware import RequestEnvelope
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, answer, invalid, unavailable
from booth_service.errors import BaseModelError, StorageError

logger = logging.getLogger(__name__)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build(lifespan: Lifespan) -> FastAPI:
    """The application. Its lifespan must set `app.state.plane`."""
    app = FastAPI(title="Booth", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/v1/openapi.json")
    app.include_router(api.router)
    app.include_router(picture_api.router)
    app.include_router(openai_api.router)
    app.include_router(generation_api.router)
    app.include_router(evaluation_api.router)
    app.include_router(group_api.router)
    app.include_router(attempt_api.router, include_in_schema=False)
    app.include_router(run_attempt_api.router, include_in_schema=False)
    app.include_router(serving_api.router, include_in_schema=False)
    app.add_middleware(RequestEnvelope)
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(StorageError, _storage)
    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(BaseModelError, _base_model)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _request_id(request: Request) -> str:
    return str(request.scope["state"]["request_id"])


def _answer(request: Request, error: ProblemError) -> JSONResponse:
    """In the words of the API that was spoken to."""
    in_words = openai_errors.answer if request.url.path.startswith(openai_api.PREFIX) else answer
    return in_words(error, _request_id(request))


async def _problem(request: Request, error: Any) -> JSONResponse:
    return _answer(request, error)


async def _validation(request: Request, error: Any) -> JSONResponse:
    """Every bad field at once, a base model that nobody knows included."""
    if isinstance(error.body, bytes):
        remedy = "Send a JSON object with Content-Type: application/json."
        body = FieldProblem(field="body", value="", message="It is not JSON.", remedy=remedy)
        return _answer(request, invalid([body]))
    problems = field_problems([{**each, "loc": _place(each)} for each in error.errors()])
    name = error.body.get("base_model") if isinstance(error.body, dict) else None
    if isinstance(name, str) and not any(problem.field == "base_model" for problem in problems):
        problems += await run_in_threadpool(_unknown_base_model, request.app.state.plane, name)
    return _answer(request, invalid(problems))


def _place(error: dict[str, Any]) -> tuple[Any, ...]:
    """Where the error is, without the "body" before it; bad JSON is at a byte, which is no field."""
    if error["type"] == "json_invalid":
        return ("body",)
    return tuple(error["loc"][1:])


def _unknown_base_model(plane: Plane, name: str) -> list[FieldProblem]:
    with plane.database.read() as session:
        return admission.base_model_problems(session, name)


async def _http(request: Request, error: Any) -> JSONResponse:
    """Routes and methods that do not exist, and what FastAPI wraps while it reads a body."""
    if isinstance(error.__cause__, ProblemError):
        problem = error.__cause__
    elif error.status_code == 404:
        problem = ProblemError("not_found", f"There is no {request.url.path}.", remedy="See /v1/openapi.json.")
    else:
        problem = ProblemError("bad_request", f"{request.method} {request.url.path}: {error.detail}.")
    return _answer(request, problem)


async def _storage(request: Request, error: Any) -> JSONResponse:
    logger.error("%s: %s", _request_id(request), error)
    return _answer(request, unavailable("The object store does not answer as it should."))


async def _database(request: Request, error: Any) -> JSONResponse:
    logger.error("%s: %s", _request_id(request), error)
    return _answer(request, unavailable("The database does not answer."))


async def _base_model(request: Request, error: Any) -> JSONResponse:
    logger.error("%s: %s", _request_id(request), error)
    problem = ProblemError("internal", "The base model cannot be used.", str(error), "Tell the operator.")
    return _answer(request, problem)


async def _unexpected(request: Request, error: Any) -> JSONResponse:
    problem = ProblemError("internal", "An unexpected error.", remedy="Report the request id.")
    return _answer(request, problem)
