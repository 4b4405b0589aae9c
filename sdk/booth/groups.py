"""A sweep or benchmark: many jobs run by one job on the cluster. Follow it, look at its cells, take its report."""

from __future__ import annotations

import builtins
import hashlib
import warnings
from urllib.parse import quote

from booth.contract.groups import CellLabels, CellPage, CellRecord, GroupPage, GroupRecord
from booth.contract.jobs import JobFailure, PreparedJob
from booth.contract.scores import Score
from booth.contract.states import JobState
from booth.errors import BoothWarning
from booth.jobs import Job, Jobs
from booth.reports import Report
from booth.runs import Run
from booth.sweep import Plan
from booth.transport import Transport
from booth.upload import OnUpload, check_class_images, upload_missing

PATH = "/v1/groups"
SUBMIT_TIMEOUT_S = 300.0  # a thousand jobs are checked one by one


class Cell:
    """One job of a group, as of the call that listed it: which subject in which arm, where it stands, its scores."""

    def __init__(self, transport: Transport, record: CellRecord) -> None:
        self._transport = transport
        self._record = record

    def __repr__(self) -> str:
        return f"<booth.Cell {self.labels.subject}, {self.labels.arm}: {self.status}>"

    @property
    def record(self) -> CellRecord:
        """All fields, as the service sent them."""
        return self._record

    @property
    def labels(self) -> CellLabels:
        """Its subject, arm and seed, and the value of each dial that varies."""
        return self._record.labels

    @property
    def status(self) -> JobState:
        return self._record.status

    @property
    def error(self) -> JobFailure | None:
        """Why its job failed, and what to do; None where it did not."""
        return self._record.error

    @property
    def job_id(self) -> str:
        return self._record.job_id

    @property
    def model_id(self) -> str | None:
        return self._record.model_id

    @property
    def job(self) -> Job:
        """The job itself, with events, samples and all."""
        return Jobs(self._transport).get(self.job_id)

    def scores(self) -> list[Score]:
        """What its weights came to, the earliest step first; step 0 is the frozen base. Without pictures."""
        return self._record.scores


class Group(Run[GroupRecord]):
    """A sweep or benchmark on its way; made anew by `client.groups.get`.

    It succeeds with what its cells came to: those that failed are no error of its own, and `states`, `cells` and the
    report tell of them. Jobs and models of its cells outlive it.
    """

    path = PATH
    record_type = GroupRecord

    def __repr__(self) -> str:
        return f"<booth.Group {self.id} {self.name!r} {self.status} {self.done}/{self.total}: {self.status_detail}>"

    @property
    def name(self) -> str:
        return self._record.settings.name

    @property
    def states(self) -> dict[str, int]:
        """How many cells are in each state."""
        return self._record.states

    def cells(self) -> builtins.list[Cell]:
        """All cells in their order, with the scores that are there by now."""
        page = self._transport.get(f"{self._path}/cells", CellPage)
        return [Cell(self._transport, record) for record in page.cells]

    def report(self) -> Report:
        """Its report: tables over subjects, curves over steps, pictures. Raises ConflictError before its end."""
        return Report(self._transport, f"{self._path}/report")


class Groups:
    """The groups of the key's owner: `client.groups`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, group_id: str) -> Group:
        """The group with this id, from any process. Raises NotFoundError."""
        path = f"{PATH}/{quote(group_id, safe='')}"
        return Group(self._transport, self._transport.get(path, GroupRecord))

    def submit(self, plan: Plan, idempotency_key: str | None = None, on_upload: OnUpload | None = None) -> Group:
        """The planned group, queued; or the one that the same plan (or key) made before, taken up."""
        for text in plan.warnings:
            warnings.warn(text, BoothWarning, stacklevel=3)
        for spec in plan.uploads:
            prepared = self._transport.post("/v1/jobs/prepare", PreparedJob, body=spec, repeatable=True)
            upload_missing(self._transport, plan.files, prepared.uploads, on_upload)
        check_class_images(self._transport, plan.class_images)
        key = idempotency_key or key_of(plan)
        record = self._transport.post(
            PATH, GroupRecord, body=plan.spec, idempotency_key=key, timeout_s=SUBMIT_TIMEOUT_S
        )
        return Group(self._transport, record)

    def list(self, limit: int | None = None) -> builtins.list[Group]:
        """Groups, newest first; `limit` is the most."""
        records = self._transport.newest(PATH, GroupPage, lambda page: page.groups, limit)
        return [Group(self._transport, record) for record in records]


def key_of(plan: Plan) -> str:
    """The key that every submission of this very plan has: of its photos' content and all its settings."""
    return hashlib.sha256(plan.spec.canonical_json().encode()).hexdigest()
