"""Why nothing is drawn, as an answer: a status that the control plane understands, and a DrawRefusal."""

from booth.contract.serving import DrawRefusal
from booth.contract.states import FailureReason
from booth_service.errors import CannotDraw, DrawTimeout, EngineBusy, ServiceError

RETRY_AFTER_S = 5

_ANSWERS: dict[type[Exception], tuple[int, str]] = {
    CannotDraw: (422, "invalid"),
    EngineBusy: (429, "busy"),
    DrawTimeout: (504, "timeout"),
}


def refusal_of(error: Exception) -> tuple[int, DrawRefusal]:
    """HTTP status and body. The words of what is no ServiceError are kept back: they may tell too much."""
    if not isinstance(error, ServiceError):
        return 500, DrawRefusal(reason=FailureReason.INTERNAL.value, detail=type(error).__name__)
    status, reason = _ANSWERS.get(type(error), (503, error.reason.value))
    return status, DrawRefusal(reason=reason, detail=error.detail)
