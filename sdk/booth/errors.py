"""Everything the client raises.

BoothError
  ConfigError             the profile file or the asked profile cannot be used
    NoServerError         nothing says which server to talk to
  ValidationError         names every bad parameter; also a ValueError
    ImageValidationError  names every bad photo
  APIError                the service answered with an error; code, status, request_id, remedy
    AuthenticationError   401: no key, or a wrong one
    NotFoundError         404
    ConflictError         409
    BusyError             429
    UnavailableError      503, 502, 504
      PausedError         inference is paused while a job holds the devices
    APIConnectionError    no answer at all
      APITimeoutError
  TransferError           a photo, a picture or a model file did not arrive whole
  FormatError             a model cannot be written in the format that was asked for
  JobError                about a job, a generation or an evaluation: .job
    JobFailedError
    JobCancelledError
    WaitTimeoutError      the wait ended, the job goes on; also a TimeoutError

BoothWarning              what the client and the service warn of
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from booth.contract.problems import FieldProblem, Problem

if TYPE_CHECKING:
    from booth.jobs import Job
    from booth.runs import Run


class BoothWarning(UserWarning):
    """Something that is allowed but probably not meant."""


class BoothError(Exception):
    """Base of all."""


class ConfigError(BoothError):
    """The profile file or the asked profile cannot be used."""


class NoServerError(ConfigError):
    """Neither argument, environment nor profile names a server, and no local stack runs."""


class ValidationError(BoothError, ValueError):
    """Input that is refused. `problems` names every bad field or file, with its value, the reason and a remedy."""

    subject = "input"

    def __init__(self, problems: Sequence[FieldProblem], request_id: str = "") -> None:
        self.problems = list(problems)
        self.request_id = request_id
        super().__init__(self._text())

    def _text(self) -> str:
        count = len(self.problems)
        head = f"{count} problem{'' if count == 1 else 's'} with the {self.subject}:"
        return "\n".join([head, *(f"  {_problem_line(problem)}" for problem in self.problems)])


class ImageValidationError(ValidationError):
    """Photos that are refused; `problems` names each of them."""

    subject = "photos"


class APIError(BoothError):
    """The service answered with an error."""

    def __init__(self, problem: Problem) -> None:
        self.code = problem.code
        self.status = problem.status
        self.request_id = problem.request_id
        self.remedy = problem.remedy
        sentences = [problem.title, problem.detail, problem.remedy]
        text = " ".join(part if part.endswith((".", "?", "!", ":")) else part + "." for part in sentences if part)
        super().__init__(f"{text} (request {self.request_id})" if self.request_id else text)


class AuthenticationError(APIError):
    """No API key, or one that the service does not know."""


class NotFoundError(APIError):
    """There is no such job, model or base model, or it belongs to somebody else."""


class ConflictError(APIError):
    """The call does not fit the state of things, such as cancelling a finished job."""


class BusyError(APIError):
    """Too many calls or jobs at once."""


class UnavailableError(APIError):
    """The service cannot answer now."""


class PausedError(UnavailableError):
    """Inference is paused while a job holds the devices."""


class APIConnectionError(APIError):
    """No answer came."""


class APITimeoutError(APIConnectionError):
    """No answer came in time."""


class TransferError(BoothError):
    """A photo or a model file did not arrive whole."""


class FormatError(BoothError):
    """A model cannot be written in the format that was asked for."""


class JobError(BoothError):
    """About one job, generation, evaluation or group, which is in `job`."""

    def __init__(self, job: Job | Run[Any], text: str) -> None:
        self.job = job
        super().__init__(text)


class JobFailedError(JobError):
    """The job ended without a model, the generation without all its pictures; `job.error` says why."""


class JobCancelledError(JobError):
    """The job was cancelled."""


class WaitTimeoutError(JobError, TimeoutError):
    """The wait ended; the job goes on."""


_BY_CODE: dict[str, type[APIError]] = {
    "unauthenticated": AuthenticationError,
    "not_found": NotFoundError,
    "conflict": ConflictError,
    "busy": BusyError,
    "unavailable": UnavailableError,
    "paused": PausedError,
    "timeout": UnavailableError,
}


def from_problem(problem: Problem) -> BoothError:
    """The exception for a service's answer."""
    if problem.problems:
        are_photos = all("images" in item.field.split(".") for item in problem.problems)
        return (ImageValidationError if are_photos else ValidationError)(problem.problems, problem.request_id)
    return _BY_CODE.get(problem.code, APIError)(problem)


def _problem_line(problem: FieldProblem) -> str:
    value = f" = {problem.value}" if problem.value else ""
    return f"{problem.field}{value}: {problem.message} {problem.remedy}".rstrip()
