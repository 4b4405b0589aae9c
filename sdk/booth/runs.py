"""Work on the cluster beside jobs (generations, evaluations, groups), as their handles wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from booth.contract.base import Record
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


class RunRecord(Protocol):
    """What the records of all kinds have."""

    @property
    def id(self) -> str: ...

    @property
    def status(self) -> RunState: ...

    @property
    def status_detail(self) -> str: ...

    @property
    def done(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def error(self) -> JobFailure | None: ...

    @property
    def created_at(self) -> datetime: ...


AnyRecord = TypeVar("AnyRecord", bound=RunRecord)


class Run(Generic[AnyRecord]):
    """A live handle; its fields are as of the last call that went to the service."""

    path: ClassVar[str]
    record_type: ClassVar[type[Record]]

    def __init__(self, transport: Transport, record: AnyRecord) -> None:
        self._transport = transport
        self._record = record

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<booth.{kind} {self.id} {self.status} {self.done}/{self.total}: {self.status_detail}>"

    @property
    def record(self) -> AnyRecord:
        """All fields, as the service sent them."""
        return self._record

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def status(self) -> RunState:
        return self._record.status

    @property
    def status_detail(self) -> str:
        """What happens now, in a sentence; at the end, how it went."""
        return self._record.status_detail

    @property
    def done(self) -> int:
        """Pictures or cells that are there."""
        return self._record.done

    @property
    def total(self) -> int:
        """Pictures or cells that were asked for."""
        return self._record.total

    @property
    def error(self) -> JobFailure | None:
        """Why it failed, and what to do; None where it did not."""
        return self._record.error

    @property
    def created_at(self) -> datetime:
        return self._record.created_at

    @property
    def _path(self) -> str:
        return f"{self.path}/{self.id}"

    def refresh(self) -> Self:
        """This one, as it stands now."""
        self._record = self._transport.get(self._path, self.record_type)  # type: ignore[assignment]
        return self

    def cancel(self) -> Self:
        """It is asked to stop; what is there stays. Raises ConflictError where it is over already."""
        path = f"{self._path}/cancel"
        self._record = self._transport.post(path, self.record_type, repeatable=True)  # type: ignore[assignment]
        return self

    def delete(self) -> None:
        """It is gone, with what is stored of it; models stay."""
        self._transport.delete(self._path)

    def wait(self, timeout_s: float | None = None, on_progress: Callable[[Self], object] | None = None) -> Self:
        """This one, succeeded. `on_progress` sees it about every second.

        Raises JobFailedError, JobCancelledError, or WaitTimeoutError after `timeout_s` seconds; then, as after Ctrl-C,
        it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        away_since: float | None = None
        while True:
            try:
                self.refresh()
                away_since = None
            except (APIConnectionError, UnavailableError):
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S:
                    raise
            if on_progress is not None:
                on_progress(self)
            if self.status.is_final:
                _raise_unless_succeeded(self)
                return self
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(self, f"The wait ended; {self.id} is still {self.status} and goes on.")
            self._transport.sleep(POLL_PAUSE_S)


def _raise_unless_succeeded(run: Run[Any]) -> None:
    if run.status is RunState.SUCCEEDED:
        return
    if run.status is RunState.CANCELLED:
        raise JobCancelledError(run, f"{run.id} was cancelled.")
    error = run.error
    said = [] if error is None else [error.message, error.detail and f"({error.detail})", error.remedy]
    raise JobFailedError(run, f"{run.id} {run.status}: {' '.join(filter(None, said)) or run.status_detail}")
