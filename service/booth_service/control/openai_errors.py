"""Errors as clients of OpenAI's API expect them: {"error": {message, type, code, param}}."""

from typing import Any

from starlette.responses import JSONResponse

from booth_service.control.problems import ProblemError, headers_of, problem_record

INVALID = "invalid_request_error"

# Our code -> status, type and code there; what is not here keeps its status.
_KINDS = {
    "bad_request": (400, INVALID, None),
    "invalid": (400, INVALID, "invalid_value"),
    "unauthenticated": (401, INVALID, "invalid_api_key"),
    "not_found": (404, INVALID, "not_found"),
    "busy": (429, "rate_limit_error", "rate_limit_exceeded"),
}
_FIELDS = {"prompts": "prompt", "num_images": "n", "width": "size", "height": "size"}


def answer(error: ProblemError, request_id: str) -> JSONResponse:
    """The HTTP answer to an error."""
    problem = problem_record(error, request_id)
    status, kind, code = _KINDS.get(error.code, (problem.status, "server_error", error.code))
    param = None
    sentences = [problem.title, problem.detail, problem.remedy]
    if problem.problems:
        first = problem.problems[0]
        param = field_there(first.field)
        sentences = [f"{field_there(each.field)}: {each.message} {each.remedy}".strip() for each in problem.problems]
    if (error.code, param) == ("not_found", "model"):
        code = "model_not_found"
    message = " ".join(sentence for sentence in sentences if sentence)
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "code": code, "param": param}}
    return JSONResponse(body, status, headers_of(error))


def field_there(field: str) -> str:
    """What a field of ours is called there."""
    name = field.split(".")[0]
    return _FIELDS.get(name, field)
