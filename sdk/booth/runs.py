"""Work on the cluster beside jobs (generations, evaluations, groups), as their handles wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from booth.contract.jobs import JobFailure
from booth.contract.states import RunState
from booth.errors import (
    APIConnectionError,
    JobCancelledError,
    JobFailedError,
    UnavailableError,
    WaitTimeoutError,
)
from booth.transport import Transport

PATIENCE_S = 120.0  # how long a follower bears a server that is away
POLL_PAUSE_S = 1.0


class Run(Protocol):
    """A live handle of any kind."""

    @property
    def id(self) -> str: ...

    @property
    def status(self) -> RunState: ...

    @property
    def status_detail(self) -> str: ...

    @property
    def error(self) -> JobFailure | None: ...

    def refresh(self) -> Any: ...


AnyRun = TypeVar("AnyRun", bound=Run)


def wait(
    run: AnyRun, transport: Transport, timeout_s: float | None, on_progress: Callable[[AnyRun], object] | None
) -> AnyRun:
    """The run, succeeded. `on_progress` sees it about every second.

    Raises JobFailedError, JobCancelledError, or WaitTimeoutError after `timeout_s` seconds; then, as after Ctrl-C, it
    goes on.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    away_since: float | None = None
    while True:
        try:
            run.refresh()
            away_since = None
        except (APIConnectionError, UnavailableError):
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > PATIENCE_S:
                raise
        if on_progress is not None:
            on_progress(run)
        if run.status.is_final:
            return _outcome(run)
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(run, f"The wait ended; {run.id} is still {run.status} and goes on.")
        transport.sleep(POLL_PAUSE_S)


def _outcome(run: AnyRun) -> AnyRun:
    if run.status is RunState.SUCCEEDED:
        return run
    if run.status is RunState.CANCELLED:
        raise JobCancelledError(run, f"{run.id} was cancelled.")
    error = run.error
    said = [] if error is None else [error.message, error.detail and f"({error.detail})", error.remedy]
    raise JobFailedError(run, f"{run.id} {run.status}: {' '.join(filter(None, said)) or run.status_detail}")
