"""Errors of the API as exceptions: raised where the reason is known, answered as problem details."""

from starlette.responses import JSONResponse

from booth.contract.problems import FieldProblem, Problem

_STATUS = {
    "bad_request": 400,
    "unauthenticated": 401,
    "not_found": 404,
    "conflict": 409,
    "invalid": 422,
    "busy": 429,
    "client_gone": 499,
    "internal": 500,
    "unavailable": 503,
    "paused": 503,
    "timeout": 504,
}

_LISTED_BY = {
    "job": "ls",
    "model": "models",
    "generation": "generations",
    "evaluation": "evaluations",
    "group": "groups",
}


class ProblemError(Exception):
    """An answer with status >= 400. `code` decides the status."""

    def __init__(self, code: str, title: str, detail: str = "", remedy: str = "", retry_after_s: int = 0) -> None:
        super().__init__(title)
        self.code = code
        self.title = title
        self.detail = detail
        self.remedy = remedy
        self.retry_after_s = retry_after_s
        self.problems: list[FieldProblem] = []


def invalid(problems: list[FieldProblem]) -> ProblemError:
    """422 that lists every bad field or file."""
    names = ", ".join(dict.fromkeys(problem.field for problem in problems))
    error = ProblemError("invalid", "The request is not valid.", f"{len(problems)} problem(s): {names}.")
    error.problems = problems
    return error


def not_found(kind: str, name: str) -> ProblemError:
    """404, the same for what never existed, was deleted, or belongs to another tenant."""
    listed = f"boothctl {_LISTED_BY[kind]}, or GET /v1/{kind}s" if kind in _LISTED_BY else f"GET /v1/{kind}s"
    return ProblemError("not_found", f"There is no {kind} {name!r}.", remedy=f"List what you have: {listed}.")


def conflict(title: str, remedy: str = "") -> ProblemError:
    """409."""
    return ProblemError("conflict", title, remedy=remedy)


def unavailable(title: str, detail: str = "", retry_after_s: int = 5) -> ProblemError:
    """503 that may be tried again."""
    return ProblemError("unavailable", title, detail, "Try again in a few seconds.", retry_after_s)


def problem_record(error: ProblemError, request_id: str) -> Problem:
    """An error on the wire."""
    return Problem(
        code=error.code,
        title=error.title,
        detail=error.detail,
        remedy=error.remedy,
        status=_STATUS[error.code],
        request_id=request_id,
        problems=error.problems,
    )


def headers_of(error: ProblemError) -> dict[str, str]:
    """What the error's answer says to programs. Clients of OpenAI's family look for `x-should-retry`, ours too."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    if error.code == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    if error.code == "timeout":
        headers["x-should-retry"] = "false"  # what took all of its time once would do so again
    return headers


def answer(error: ProblemError, request_id: str) -> JSONResponse:
    """The HTTP answer to an error."""
    problem = problem_record(error, request_id)
    body = problem.model_dump(mode="json")
    return JSONResponse(body, problem.status, headers_of(error), media_type="application/problem+json")
