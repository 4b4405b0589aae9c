"""One attempt from its brief to its exit code, whatever it is for: how it ends is said to the control plane."""

import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

from booth.contract.states import FailureReason
from booth_service.beats import Line
from booth_service.errors import AttemptEnded, ServiceError

EXIT_FAILED, EXIT_ENDED = 3, 4


class Fenced(Protocol):
    """A brief of any kind."""

    @property
    def fence(self) -> int: ...


AnyBrief = TypeVar("AnyBrief", bound=Fenced)


def attempt(line: Line, read: Callable[[], AnyBrief], run: Callable[[AnyBrief], None]) -> int:
    """What `read` says was done by `run`; the exit code is 0 where it was. The reason of a failure is reported."""
    if not line.stack_secret.get_secret_value():
        print("BOOTH_STACK_SECRET is not set on this Ray node; give it the control plane's.", flush=True)
        return EXIT_FAILED
    fence = 0
    try:
        brief = read()
        fence = brief.fence
        run(brief)
    except AttemptEnded as ended:
        print(f"stopped: {ended}", flush=True)
        return EXIT_ENDED
    except Exception as error:
        reason = error.reason if isinstance(error, ServiceError) else FailureReason.INTERNAL
        print(f"failed ({reason}): {error}", flush=True)
        if not isinstance(error, ServiceError):
            sys.excepthook(type(error), error, error.__traceback__)
        line.failed(fence, reason, f"{type(error).__name__}: {error}")
        return EXIT_FAILED
    return 0
