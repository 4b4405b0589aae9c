"""A submitted job: look at it and its samples, wait for its model, follow its events and logs, cancel it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from booth import samples
from booth.contract.evaluation import JobScores
from booth.contract.jobs import Event, EventPage, JobFailure, JobPage, JobRecord, LogPage, Params, Progress
from booth.contract.models import ModelRecord
from booth.contract.scores import Score
from booth.contract.states import JobState
from booth.errors import (
    APIConnectionError,
    JobCancelledError,
    JobFailedError,
    UnavailableError,
    WaitTimeoutError,
)
from booth.models import Model
from booth.reports import Report
from booth.samples import SampleStrip
from booth.transport import Transport

if TYPE_CHECKING:
    from PIL.Image import Image

LONG_POLL_S = 20
PATIENCE_S = 120.0  # how long a follower bears a server that is away
POLL_PAUSE_S = 1.0

OnEvent = Callable[[Event], object]


class Job:
    """A live handle; its fields are as of the last call that went to the service. Made anew by `client.jobs.get`."""

    def __init__(self, transport: Transport, record: JobRecord) -> None:
        self._transport = transport
        self._record = record

    def __repr__(self) -> str:
        done = f" {self.progress.step}/{self.progress.total_steps}" if self.progress.total_steps else ""
        return f"<booth.Job {self.id} {self.name!r} {self.status}{done}: {self.status_detail}>"

    @property
    def record(self) -> JobRecord:
        """All fields, as the service sent them."""
        return self._record

    @property
    def id(self) -> str:
        return self._record.id

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def status(self) -> JobState:
        return self._record.status

    @property
    def status_detail(self) -> str:
        """What happens now, in a sentence."""
        return self._record.status_detail

    @property
    def progress(self) -> Progress:
        return self._record.progress

    @property
    def params(self) -> Params:
        """Every value as resolved, the seed included."""
        return self._record.params

    @property
    def warnings(self) -> list[str]:
        return self._record.warnings

    @property
    def error(self) -> JobFailure | None:
        """Why the job failed, and what to do; None where it did not."""
        return self._record.error

    @property
    def model_id(self) -> str | None:
        return self._record.model_id

    @property
    def selected_step(self) -> int | None:
        """The step whose weights are published, where the job chose among its checkpoints."""
        return self._record.selected_step

    @property
    def created_at(self) -> datetime:
        return self._record.created_at

    @property
    def started_at(self) -> datetime | None:
        return self._record.started_at

    @property
    def finished_at(self) -> datetime | None:
        return self._record.finished_at

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{self.id}"

    def refresh(self) -> Job:
        """This job, as it stands now."""
        self._record = self._transport.get(self._path, JobRecord)
        return self

    def cancel(self) -> Job:
        """The job is asked to stop; `wait` tells when it has. Raises ConflictError where it is over already."""
        self._record = self._transport.post(f"{self._path}/cancel", JobRecord, repeatable=True)
        return self

    def wait(self, timeout_s: float | None = None, on_event: OnEvent | None = None) -> Model:
        """The finished model. `on_event` sees every event of the job, from its first one.

        Raises JobFailedError, JobCancelledError, or WaitTimeoutError after `timeout_s` seconds; then, as after
        Ctrl-C, the job goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for event in self._follow(0, deadline):
            if on_event is not None:
                on_event(event)
        return self._outcome()

    def events(self, after: int = 0) -> Iterator[Event]:
        """The job's events past number `after`, as they come, until it is over. A dropped connection is taken up."""
        return self._follow(after, None)

    def logs(self, follow: bool = False) -> Iterator[str]:
        """The log of the latest attempt in pieces; with `follow`, until the job is over."""
        offset, attempt = 0, None
        while True:
            page = self._transport.get(f"{self._path}/logs", LogPage, params={"offset": offset})
            if attempt not in (None, page.attempt) and offset > 0:
                offset, attempt = 0, page.attempt  # a new attempt: its log begins anew
                continue
            attempt, offset = page.attempt, page.next_offset
            if page.text:
                yield page.text
            elif not follow or (page.complete and self.refresh().status.is_final):
                return
            else:
                self._transport.sleep(POLL_PAUSE_S)

    def samples(self) -> list[SampleStrip]:
        """The sample pictures so far, the earliest step first. Each is fetched when it is first looked at."""
        return samples.of_job(self._transport, self._path)

    def sample_strip(self) -> Image:
        """The sample pictures so far as one PIL image: a row for each prompt, a column for each step.

        Of more than 24 steps, 24 are shown, evenly spread. Raises NotFoundError where there are none.
        """
        if strips := self.samples():
            return samples.as_one_picture(strips)
        raise samples.none_yet(self.id, self.params)

    def scores(self) -> list[Score]:
        """What the job's weights came to so far, the earliest step first; step 0 is the frozen base. Without pictures.

        Empty where the job is not scored: `options=TrainingOptions(scoring=ScoringOptions())` asks for it.
        """
        return self._transport.get(f"{self._path}/scores", JobScores).scores

    def report(self) -> Report:
        """The report of the newest finished evaluation of the job's model, else that on the job's own scores.

        Raises NotFoundError where there is none yet (`model.evaluate()` makes one), ConflictError where the job has no
        model, or it was deleted.
        """
        return Report(self._transport, f"{self._path}/report")

    def _follow(self, after: int, deadline: float | None) -> Iterator[Event]:
        """Events until the job is over; WaitTimeoutError at the deadline."""
        away_since: float | None = None
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            wait_s = LONG_POLL_S if left_s is None else max(0, min(LONG_POLL_S, math.ceil(left_s)))
            try:
                query: dict[str, str | int] = {"after": after, "wait_s": wait_s}
                page = self._transport.get(f"{self._path}/events", EventPage, params=query)
                away_since = None
            except (APIConnectionError, UnavailableError):
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > PATIENCE_S or (left_s is not None and left_s <= 0):
                    raise
                self._transport.sleep(POLL_PAUSE_S)
                continue
            self._record = page.job
            yield from page.events
            after = page.events[-1].seq if page.events else after
            if page.job.status.is_final and not page.events:
                return
            if left_s is not None and left_s <= 0 and not page.job.status.is_final:
                raise WaitTimeoutError(self, f"The wait ended; {self.id} is still {self.status} and goes on.")

    def _outcome(self) -> Model:
        if self.status is JobState.SUCCEEDED:
            return Model(self._transport, self._transport.get(f"/v1/models/{self.model_id}", ModelRecord))
        if self.status is JobState.CANCELLED:
            raise JobCancelledError(self, f"{self.id} was cancelled.")
        raise JobFailedError(self, f"{self.id} {self.status}: {_reason(self.error) or self.status_detail}")


class Jobs:
    """The jobs of the key's owner: `client.jobs`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, job_id: str) -> Job:
        """The job with this id, from any process. Raises NotFoundError."""
        return Job(self._transport, self._transport.get(f"/v1/jobs/{quote(job_id, safe='')}", JobRecord))

    def list(self, status: str | None = None, limit: int | None = None) -> list[Job]:
        """Jobs, newest first: all, or those in one state; `limit` is the most."""
        query = {} if status is None else {"status": status}
        records = self._transport.newest("/v1/jobs", JobPage, lambda page: page.jobs, limit, query)
        return [Job(self._transport, record) for record in records]


def _reason(error: JobFailure | None) -> str:
    if error is None:
        return ""
    return " ".join(part for part in (error.message, error.detail and f"({error.detail})", error.remedy) if part)
