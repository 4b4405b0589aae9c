"""Groups of jobs on the wire: sweeps and benchmarks. Each cell is a job of its own, run by the group's one Ray job.

POST /v1/groups                       GroupSpec -> 202 GroupRecord (its photos are uploaded as those of jobs are)
GET  /v1/groups, /v1/groups/{id}      GroupPage, GroupRecord
GET  /v1/groups/{id}/cells            CellPage
GET  /v1/groups/{id}/report           ReportFiles
POST /v1/groups/{id}/cancel           202; DELETE /v1/groups/{id} 204 (jobs and models of its cells stay)

GET  /internal/runs/{id}/{attempt}                    GroupBrief
POST /internal/runs/{id}/{attempt}/cells/{job}        ClaimedCell: the job's next attempt, claimed for this group
GET  /internal/runs/{id}/{attempt}/cells              CellPage, with all scores, for the report
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from booth.contract import limits
from booth.contract.attempts import StoredFile
from booth.contract.base import Page, Record, Request
from booth.contract.jobs import JobFailure, JobSpec, Words
from booth.contract.scores import Score
from booth.contract.states import JobState, RunState

CELLS_PHASE = "cells"  # the phase in which `step` counts cells that are over
GroupKind = Literal["sweep", "benchmark"]
Label = Annotated[str, StringConstraints(max_length=200)]


class CellLabels(Record):
    """Where a cell stands in its group's table: its subject, what is varied (`arm`, and each value of it), its seed."""

    subject: str
    arm: str
    seed: int = 0
    values: dict[str, str] = {}


class CellSpec(Request):
    """One job of a group."""

    subject: Label
    arm: Label
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    values: dict[str, Label] = {}
    job: JobSpec


class GroupSpec(Request):
    """A group asked for. `baseline` is the arm that the others are compared with, pair by pair over subjects and seeds.

    At most `cells_at_once` cells run side by side; None: one on each device.
    """

    kind: GroupKind
    name: Words
    cells: Annotated[list[CellSpec], Field(min_length=1, max_length=limits.MAX_CELLS)]
    baseline: Label | None = None
    cells_at_once: Annotated[int, Field(ge=1, le=1024)] | None = None


class GroupSettings(Record):
    """What a group is run and reported with."""

    kind: GroupKind
    name: str
    baseline: str | None = None
    cells_at_once: int | None = None


class GroupRecord(Record):
    """A group as its owner sees it. `done` of `total` cells are over; `states` counts its jobs by state."""

    id: str
    status: RunState
    status_detail: str
    settings: GroupSettings
    base_model: str
    done: int
    total: int
    states: dict[str, int] = {}
    eta_s: float | None = None
    error: JobFailure | None = None
    attempt: int = 0
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class GroupPage(Page):
    """Groups, newest first."""

    groups: list[GroupRecord]


class CellRecord(Record):
    """A cell: its job, where it stands, and its scores by step, without cases and pictures.

    `score_keys` are where the whole scores lie, in the same order, and `photos` where the first subject's photos do;
    drivers alone are told them.
    """

    job_id: str
    model_id: str | None = None
    labels: CellLabels
    status: JobState
    status_detail: str = ""
    error: JobFailure | None = None
    selected_step: int | None = None
    scores: list[Score] = []
    score_keys: list[str] = []
    photos: list[StoredFile] = []


class CellPage(Record):
    """All cells of a group, in their order."""

    cells: list[CellRecord]


class CellRef(Record):
    """A cell as the group's driver hears of it. `is_unwanted`: the attempt that runs was asked to stop."""

    job_id: str
    labels: CellLabels
    status: JobState
    is_unwanted: bool = False


class GroupBrief(Record):
    """All that an attempt of a group needs to know."""

    group_id: str
    tenant_id: str
    attempt: int
    fence: int
    settings: GroupSettings
    cells: list[CellRef]
    serving_gpus: float


class ClaimedCell(Record):
    """The answer to a claim: the attempt to run, or None where the job wants none now; then `status` says why."""

    attempt: int | None = None
    fence: int = 0
    status: JobState
